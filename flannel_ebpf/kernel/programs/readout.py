"""What the pinned maps hold, in plain values for people and for Prometheus."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import BpfError, edge
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.contract import abi, enums, learned
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.kernel.programs.pins import Pins, networks

_NEVER = 10**18
"""Nanoseconds; --stand-aside is a day at most."""


def newest_maps(network: Network, root: Path) -> Path | None:
    """Return the folder of the maps that programs use now, None without any; raises BpfError."""
    with edge(f"pins of {network}", BpfError):  # a generation may go while we look
        folders = [one.path for one in Pins.of(network, root).generations() if one.kind == "maps"]
        return max(folders, key=lambda folder: folder.stat().st_mtime_ns, default=None)


def read_pinned(network: Network, root: Path) -> dict[str, Any]:
    """Return what the pinned maps hold: peers with their traffic, pods, reasons by hook; {} without maps.

    `stand_aside_in`: as `seconds_left`. Raises BpfError.
    """
    found: dict[str, Any] = {}
    for newest in maps_of(network, root).values():
        peers, pods, counted = found.get("peers", []), found.get("pods", []), found.get("reasons", {})
        found["peers"], found["pods"] = [*peers, *read_peers(newest)], [*pods, *_pods(newest)]
        found["reasons"] = _added(counted, reasons(newest))
        found.setdefault("stand_aside_in", seconds_left(newest))  # one daemon tells both families' programs
    return found


def seconds_left(folder: Path) -> int | None:
    """Return in how many seconds the programs stand aside if they hear nothing of a daemon, 0 when they do.

    None: never, or they are of a version that does not. Raises BpfError.
    """
    if not (folder / "fl_node").exists():
        return None
    with Map.open(folder / "fl_node") as one:
        until = abi.NodeState.unpack(one.lookup(abi.pack_u32(0)) or bytes(one.info.value_size)).until
    left = until - time.monotonic_ns()
    return None if left > _NEVER else max(0, round(left / 1e9))


def maps_of(network: Network, root: Path) -> dict[Network, Path]:
    """Return the folders of the maps that programs use now, of a dual-stack network one for each family.

    Raises BpfError.
    """
    places = {network: root, **dict.fromkeys(other_family(network, root), Pins.of(network, root).folder)}
    found = {one: newest_maps(one, place) for one, place in places.items()}
    return {one: folder for one, folder in found.items() if folder}


def other_family(network: Network, root: Path) -> set[Network]:
    """Return the IPv6 network that goes with a dual-stack one, as far as anything of it is pinned."""
    return networks(Pins.of(network, root).folder)


def _added(one: dict[str, dict[str, int]], other: dict[str, dict[str, int]]) -> dict[str, dict[str, int]]:
    """Return the sums of two families' counters, in the order of reasons."""
    sums = {name: Counter(one.get(name, {})) + Counter(other.get(name, {})) for name in {**one, **other}}
    return {reason.name: dict(sums[reason.name]) for reason in enums.Reason if reason.name in sums}


def read_peers(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield every peer of fl_peers with its traffic, in the order of subnets; raises BpfError."""
    with Map.open(folder / "fl_peers") as peers, Map.open(folder / "fl_peer_stats") as stats:
        found = {key: abi.Peer.unpack(value) for key, value in peers.items().items()}
        traffic = stats.sums({abi.pack_u32(peer.slot) for peer in found.values()})
        for key, peer in sorted(found.items(), key=lambda item: item[0][4:]):
            subnet = abi.SubnetKey.unpack(key)
            carried = learned.Traffic.unpack(traffic[abi.pack_u32(peer.slot)])
            yield {
                "subnet": f"{subnet.addr}/{subnet.len}",
                "public_ip": str(peer.public_ip),
                "mode": peer.mode.name.lower(),
                "tx_packets": carried.tx_packets,
                "tx_bytes": carried.tx_bytes,
                "rx_packets": carried.rx_packets,
                "rx_bytes": carried.rx_bytes,
            }


def every_peer(network: Network, root: Path) -> dict[Network, abi.Peer]:
    """Return fl_peers as it is, {} without maps; raises BpfError."""
    folder = newest_maps(network, root)
    return peers_in(folder) if folder else {}


def peers_in(folder: Path) -> dict[Network, abi.Peer]:
    """Return fl_peers of a folder of maps; raises BpfError."""
    with Map.open(folder / "fl_peers") as peers:
        found = ((abi.SubnetKey.unpack(key), value) for key, value in peers.items().items())
        return {ip_network((key.addr, key.len)): abi.Peer.unpack(value) for key, value in found}


def pods_in(folder: Path) -> dict[Address, abi.Pod]:
    """Return the pods in a folder of maps, in order; the node's own addresses beside them are none."""
    with Map.open(folder / "fl_pods") as pods:
        found = (
            (abi.AddrKey.unpack(key), abi.Pod.unpack(value)) for key, value in sorted(pods.items().items())
        )
        return {key.addr: pod for key, pod in found if enums.PodFlag.NODE not in pod.flags}


def _pods(folder: Path) -> Iterator[dict[str, Any]]:
    for address, pod in pods_in(folder).items():
        yield {"ip": str(address), "ifindex": pod.ifindex, "mac": str(pod.mac)}


def reasons(folder: Path) -> dict[str, dict[str, int]]:
    """Return reason -> hook -> packets, summed over the CPUs, without zeros."""
    found = {}
    with Map.open(folder / "fl_reasons") as counters:
        for key, value in counters.sums().items():
            count = learned.Count.unpack(value)
            hooks = {hook.name.lower(): getattr(count, hook.name.lower()) for hook in enums.Hook}
            if any(hooks.values()):
                found[enums.Reason(abi.unpack_u32(key)).name] = {k: v for k, v in hooks.items() if v}
    return found


def fill(network: Network, root: Path) -> dict[str, tuple[int, int]]:
    """Return (entries, room) of each map that can be full; the flow table cannot: new replaces old there.

    In a dual-stack network IPv6's have `_v6` behind their names.

    Raises BpfError.
    """
    found = {}
    for at, folder in enumerate(maps_of(network, root).values()):
        for name in ("fl_peers", "fl_vteps", "fl_pods", "fl_ports"):
            with Map.open(folder / name) as one:
                found[f"{name}_v6" if at else name] = (len(one.items()), one.info.max_entries)
    return found
