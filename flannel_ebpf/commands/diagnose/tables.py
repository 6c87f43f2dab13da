"""`peers`, `pods`, `flows`, `leases` and `maps`: what this node knows, as tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from typing import Any

import click

from flannel_ebpf.agent.relay_side import folder as relay_folder
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.one_line import one_line
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose import readings
from flannel_ebpf.commands.diagnose.console import (
    Column,
    Row,
    age,
    console,
    json_flag,
    print_json,
    short,
    table,
)
from flannel_ebpf.commands.diagnose.networks import Here, families, maps_of, network_flag, networks
from flannel_ebpf.commands.diagnose.paths import targets, this_node
from flannel_ebpf.commands.flags import node_flags, options_from
from flannel_ebpf.commands.told import source_of
from flannel_ebpf.commands.values import AnyAddress
from flannel_ebpf.host import report
from flannel_ebpf.kernel.hooks.standing import standing
from flannel_ebpf.kernel.netlink.links import read_addresses, read_links
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket


def _ages(row: Row) -> str:
    return "/".join("-" if one is None else age(one) for one in (row["sent_age"], row["heard_age"]))


def _latest(row: Row) -> float:
    return min((one for one in (row["sent_age"], row["heard_age"]) if one is not None), default=math.inf)


def _expiry(seconds: float | None) -> str:
    return "never" if seconds is None else age(seconds)


_PEERS = (
    Column("SUBNET", lambda row: row["subnet"]),
    Column("VIA", lambda row: row["public_ip"]),
    Column("MODE", lambda row: row["mode"]),
    Column("SENT", lambda row: short(row["tx_packets"]), right=True),
    Column("BYTES", lambda row: short(row["tx_bytes"], "B"), right=True),
    Column("HEARD", lambda row: short(row["rx_packets"]), right=True),
    Column("BYTES", lambda row: short(row["rx_bytes"], "B"), right=True),
)
_PODS = (
    Column("POD", lambda row: row["ip"] or "silent"),
    Column("DEVICE", lambda row: row["device"] or "-"),
    Column("MAC", lambda row: row["mac"] or "-"),
    Column("PATH", lambda row: row["path"]),
    Column("WHY", lambda row: row["why"]),
)
_FLOWS = (
    Column("PROTO", lambda row: row["protocol"]),
    Column("POD", lambda row: readings.end(row["pod"], row["pod_port"])),
    Column("REMOTE", lambda row: readings.end(row["remote"], row["remote_port"])),
    Column("SENDS BY", lambda row: "bpf" if row["sends_by_bpf"] else "kernel"),
    Column("HEARS BY", lambda row: "bpf" if row["hears_by_bpf"] else "kernel"),
    Column("AGE", _ages, right=True),
)
_LEASES = (
    Column("SUBNET", lambda row: row["subnet"]),
    Column("NODE", lambda row: row["public_ip"] + (" (this one)" if row["own"] else "")),
    Column("BACKEND", lambda row: row["backend"]),
    Column(
        "EXPIRES", lambda row: "never" if row["expires_in"] is None else age(row["expires_in"]), right=True
    ),
)
_SORTS: dict[str, Callable[[Row], int]] = {
    "subnet": lambda row: 0,  # as they come
    "sent": lambda row: -row["tx_bytes"],
    "heard": lambda row: -row["rx_bytes"],
}


@click.command(short_help="Show the other nodes and what BPF carried to and from them.")
@node_flags
@network_flag
@click.option("--sort", type=click.Choice(list(_SORTS)), default="subnet", show_default=True)
@json_flag
def peers(only: Network | None, sort: str, as_json: bool, **values: Any) -> None:
    """Show every peer: its subnet, the address it is reached by, and the traffic that BPF carried.

    A super-packet counts as its segments; bytes are those of inner packets.
    """
    options = options_from(values)
    found = []
    for here in (one for network in networks(options, only) for one in families(network)):
        rows = readings.peers(here.maps) if here.maps else _kernels_peers(here, options)
        rows.sort(key=_SORTS[sort])
        found += [{"network": str(here.network), **row} for row in rows]
    if as_json:
        print_json("peers", found)
    else:
        console().print(table(_PEERS, found))


def _kernels_peers(here: Here, options: Options) -> list[dict[str, Any]]:
    """Return the peers that the kernel has routes to, of a node that carries nothing by BPF."""
    relay_peers = relay_folder(options.state_dir) / "peers.json"
    every = [one for node in this_node(here) for one in targets(node, relay_peers)]
    nothing = dict.fromkeys(("tx_packets", "tx_bytes", "rx_packets", "rx_bytes"), 0)
    return [
        {"subnet": str(one.subnet), "public_ip": str(one.public_ip), "mode": "kernel", **nothing}
        for one in every
    ]


@click.command(short_help="Show the pods here, and why one is not accelerated.")
@node_flags
@network_flag
@json_flag
def pods(only: Network | None, as_json: bool, **values: Any) -> None:
    """Show every pod that has sent or received: its device, and by which path its packets go."""
    here = maps_of(networks(options_from(values), only))
    found = [{"network": str(one.network), **row} for one, _ in here for row in pods_of(one)]
    if as_json:
        print_json("pods", found)
    else:
        console().print(table(_PODS, found))


def pods_of(here: Here) -> list[dict[str, Any]]:
    """Return the pods of one network, none without maps; raises BpfError and KernelError."""
    programs: dict[str, list[str]] = defaultdict(list)
    for hook in standing(here.network):
        programs[hook.device].append(hook.program)
    return readings.pods(here.maps, device_names(), programs) if here.maps else []


@click.command(short_help="Show connections and which of them BPF carries.")
@node_flags
@network_flag
@click.option("--pod", type=AnyAddress(), help="Of this pod only.")
@click.option("--peer", type=AnyAddress(), help="With this remote address only.")
@click.option("--port", type=click.IntRange(0, 65_535), help="With this port, on either side.")
@click.option("--proto", type=click.Choice(list(readings.PROTOCOLS.values())), help="Of this protocol only.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="Show so many.")
@json_flag
def flows(only: Network | None, limit: int, as_json: bool, **values: Any) -> None:
    """Show connections, latest first: by which path each side's packets go, and when the kernel last saw one.

    AGE: since the kernel carried a packet from the pod / to the pod; BPF carries those in between.
    Of a pod that no rule concerns (`flannel-ebpf pods`) BPF carries all packets, and notes no new connection.
    """
    wanted = {name: values.pop(name) for name in ("pod", "peer", "port", "proto")}
    found = []
    for here, folder in maps_of(networks(options_from(values), only)):
        rows = (row for row in readings.flows(folder, device_names()) if _wanted(row, **wanted))
        found += [{"network": str(here.network), **row} for row in rows]
    found.sort(
        key=lambda row: min(one for one in (row["sent_age"], row["heard_age"], 1e9) if one is not None)
    )
    if as_json:
        print_json("flows", found[:limit])
        return
    console().print(table(_FLOWS, found[:limit]))
    if len(found) > limit:
        click.echo(f"and {len(found) - limit} more; --limit shows them")


def _wanted(
    row: dict[str, Any],
    pod: Address | None,
    peer: Address | None,
    port: int | None,
    proto: str | None,
) -> bool:
    return (
        (pod is None or row["pod"] == str(pod))
        and (peer is None or row["remote"] == str(peer))
        and (port is None or port in (row["pod_port"], row["remote_port"]))
        and (proto is None or row["protocol"] == proto)
    )


@click.command(short_help="Show every node's subnet as etcd or Kubernetes has it.")
@node_flags
@json_flag
def leases(as_json: bool, **values: Any) -> None:
    """Show all subnet leases, how long each still lives, and what is none."""
    options = options_from(values)
    told = next((one for _, one in report.read_all(options.state_dir) if one and one["kube"]["node"]), None)
    with closing(source_of(options, told)) as source, RouteSocket() as netlink:
        snapshot = source.snapshot()
        own = _own_addresses(netlink)
        rows = [
            {
                "subnet": str(part.subnet),
                "public_ip": str(part.public_ip),
                "backend": part.backend_type or "udp",
                "expires_in": seconds,
                "own": lease.public_ip in own,
                "data": part.backend_data,
            }
            for lease in snapshot.leases
            for seconds in [source.seconds_left(lease)]
            for part in lease.parts
        ]
    skipped = [{"key": one.key, "why": one.why} for one in snapshot.skipped]
    if as_json:
        print_json("leases", {"leases": rows, "skipped": skipped})
        return
    console().print(table(_LEASES, rows))
    for one in snapshot.skipped:
        click.echo(f"skipped: {one_line(f'{one.key}: {one.why}', 500)}")


@click.command("maps", short_help="Show what is in a BPF map.")
@click.argument("name", type=click.Choice([*readings.MAPS, *(one[3:] for one in readings.MAPS)]))
@node_flags
@network_flag
@json_flag
def maps(name: str, only: Network | None, as_json: bool, **values: Any) -> None:
    """Show the entries of map NAME, field by field."""
    name = name if name.startswith("fl_") else f"fl_{name}"
    found = []
    for here, folder in maps_of(networks(options_from(values), only)):
        rows = readings.entries(folder, name)
        found += [{"network": str(here.network), **row} for row in rows]
    if as_json:
        print_json(name, found)
        return
    for row in found:
        key = row["key"]
        text = " ".join(f"{one}={value}" for one, value in row["value"].items())
        shown = " ".join(f"{one}={value}" for one, value in key.items()) if isinstance(key, dict) else key
        click.echo(f"{shown}: {text}")


def device_names() -> dict[int, str]:
    """Return the names of all devices by index; raises KernelError."""
    with RouteSocket() as netlink:
        return {index: link.name for index, link in read_links(netlink).items()}


def _own_addresses(netlink: RouteSocket) -> set[Address]:
    return {one.interface.ip for family in Family for one in read_addresses(netlink, family)}
