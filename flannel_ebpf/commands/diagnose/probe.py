"""`flannel-ebpf probe`: can this node and its peers hear each other, and by which path."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import click
from rich.text import Text

from flannel_ebpf.agent.relay_side import folder as relay_folder
from flannel_ebpf.base.family import Family, Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose.console import (
    Column,
    console,
    json_flag,
    print_json,
    table,
    wrapped,
)
from flannel_ebpf.commands.diagnose.networks import Here, network_flag, networks, told_families
from flannel_ebpf.commands.diagnose.paths import Node, Target, chosen, programmed, targets, this_node
from flannel_ebpf.commands.diagnose.probe_packets import overhead
from flannel_ebpf.commands.diagnose.prober import SMALL, WAYS, Prober, Tally, Way
from flannel_ebpf.commands.flags import node_flags, options_from

_STEP = 100  # bytes below the full size for the middle one
_FINE = 8  # bytes to which the largest size that passes is found

_ROWS = (
    Column("PEER", lambda row: row["subnet"]),
    Column("VIA", lambda row: row["public_ip"]),
    Column("KERNEL", lambda row: row["kernel"]),
    Column("BPF", lambda row: row["bpf"] or "same"),
    Column("RTT", lambda row: "-" if row["rtt_ms"] is None else f"{row['rtt_ms']:.2f} ms", right=True),
    Column("", lambda row: Text("ok", "green") if row["ok"] else Text("FAIL", "red")),
)


@click.command(short_help="Try the way to every peer and back, by kernel and by BPF.")
@click.argument("peer", required=False)
@node_flags
@network_flag
@click.option("--count", type=click.IntRange(1, 100), default=3, show_default=True, help="Rounds of packets.")
@click.option("--timeout", type=click.FloatRange(0.1, 10), default=1.0, show_default=True,
              help="Seconds to wait for answers in each round.")  # fmt: skip
@json_flag
def probe(
    peer: str | None, only: Network | None, count: int, timeout: float, as_json: bool, **values: Any
) -> int:
    """Send packets to every peer, or to PEER: a subnet, a node's address or a pod's.

    KERNEL and BPF: answers of packets sent, at three sizes up to the MTU, by the kernel's path and wrapped
    as the BPF programs wrap them. Status 0: all is well; 1: the lines below the table say what is not.
    """
    options = options_from(values)
    rows: list[dict[str, Any]] = []
    for here in networks(options, only):
        rows += _of_network(options, here, peer, count, timeout)
    if peer and not rows:
        raise click.UsageError(f"{peer!r} is no peer of this node; `flannel-ebpf peers` shows them.")
    if as_json:
        print_json("probe", rows)
    else:
        console().print(table(_ROWS, rows))
        for row in rows:
            for line in row["findings"]:
                click.echo("\n".join(wrapped(f"{row['subnet']}: {line}")))
        click.echo("" if rows else "no peers")
    return 0 if all(row["ok"] for row in rows) else 1


def _of_network(
    options: Options, here: Here, peer: str | None, count: int, timeout: float
) -> list[dict[str, Any]]:
    relays = relay_folder(options.state_dir) / "peers.json"
    found: list[dict[str, Any]] = []
    for node, one in zip(this_node(here), told_families(here), strict=True):
        wanted = targets(node, relays)
        if peer:
            wanted = chosen(wanted, peer) or chosen(programmed(one.maps) if one.maps else (), peer)
        found += of_family(node, wanted, count, timeout)
    return found


def of_family(node: Node, wanted: Sequence[Target], count: int, timeout: float) -> list[dict[str, Any]]:
    """Try one family's way to each of these peers, and return a row for each; raises KernelError."""
    sizes = (SMALL, node.mtu - _STEP, node.mtu)
    with Prober(node, wanted) as prober:
        for _ in _progress(range(count), f"{len(wanted)} peers"):
            prober.round(lambda _target: sizes, timeout)
    largest = _largest(node, prober.tallies, min(timeout, 0.3))
    found = []
    for target, tally in prober.tallies.items():
        findings = diagnose(node, tally, sizes, largest.get(target))
        found.append(_row(node, target, tally, sizes, findings))
    return found


def _largest(node: Node, tallies: Mapping[Target, Tally], timeout: float) -> dict[Target, int]:
    """Return the largest size that passes to peers that answer small packets alone; all at once.

    Its packets are no part of `tallies`: a size that is tried here as well was asked as often as the others.
    """
    limits = {
        one: (SMALL, node.mtu)
        for one, tally in tallies.items()
        if tally.came("kernel", SMALL) and not tally.came("kernel", node.mtu)
    }
    if not limits:
        return {}
    with Prober(node, list(limits)) as prober:
        while any(high - low > _FINE for low, high in limits.values()):
            asked = {one: (low + high) // 2 for one, (low, high) in limits.items() if high - low > _FINE}
            prober.round(lambda one: (asked[one],) if one in asked else (), timeout)  # noqa: B023 - called at once
            for one, size in asked.items():
                low, high = limits[one]
                limits[one] = (size, high) if prober.tallies[one].came("kernel", size) else (low, size)
    return {one: low for one, (low, _) in limits.items()}


def diagnose(node: Node, tally: Tally, sizes: Sequence[int], largest: int | None) -> list[str]:
    """Say what is wrong with the way to one peer and back, if anything is."""
    small, full = sizes[0], sizes[-1]
    if not tally.came("kernel", small):
        return [_silence(node, tally, small)]
    found = []
    if not tally.came("kernel", full):
        passes = largest or small
        headers = overhead(node.backend, node.family)
        found.append(
            f"packets up to {passes} bytes pass, those of {full} (our MTU) do not: something on the way "
            f"carries less than {full + headers} bytes; raise its MTU, or set Backend.MTU to "
            f"{passes + headers} for all"
        )
    zero = " (UDP checksum 0)" if node.family is Family.V4 else ""
    if tally.sent["bpf", small] and not tally.came("bpf", small):
        found.append(
            f"packets as BPF sends them{zero} are lost, the kernel's arrive: something on the way "
            "drops them; --datapath=kernel avoids it"
        )
    lost = [
        f"{way} {size}: {1 - tally.came(way, size) / tally.sent[way, size]:.0%}"
        for way in WAYS[:2]
        for size in sizes
        if 0 < tally.came(way, size) < tally.sent[way, size]
    ]
    return found + ([f"packets are lost: {', '.join(lost)}"] if lost else [])


def _silence(node: Node, tally: Tally, small: int) -> str:
    """Say why a peer's overlay address does not answer at all."""
    port = f"UDP port {node.port}" if node.port else ""
    beside = tally.came("underlay", SMALL)
    if tally.returned:
        return f"it hears us, but we do not hear it: {port} is filtered on this host or on the way from it"
    if tally.came("bpf", small):
        return (
            "only packets as BPF sends them are answered: a firewall or route of this host stops the kernel's"
        )
    if not beside:
        return "its public address does not answer either: it is down, or there is no way to it"
    if not port:
        return (
            "its node answers, its subnet does not: no pod or bridge there yet, no route back, or a firewall"
        )
    return f"it does not hear us: {port} is filtered there or on the way to it, or its overlay device is gone"


def _row(
    node: Node, target: Target, tally: Tally, sizes: Sequence[int], findings: list[str]
) -> dict[str, Any]:
    trips = [trip for (way, _), some in tally.trips.items() if way != "underlay" for trip in some]
    return {
        "network": str(node.network),
        "subnet": str(target.subnet),
        "public_ip": str(target.public_ip),
        "sizes": list(sizes),
        "kernel": _answers(tally, "kernel", sizes),
        "bpf": _answers(tally, "bpf", sizes),
        "underlay": _answers(tally, "underlay", (SMALL,)),
        "hears_us": bool(tally.returned or tally.came("kernel", sizes[0])),
        "rtt_ms": round(statistics.median(trips) * 1000, 3) if trips else None,
        "ok": not findings,
        "findings": findings,
    }


def _answers(tally: Tally, way: Way, sizes: Sequence[int]) -> str:
    """Return `3/3 3/3 0/3`: answers of packets sent, by size; "" when none was sent."""
    return " ".join(
        f"{tally.came(way, size)}/{tally.sent[way, size]}" for size in sizes if tally.sent[way, size]
    )


def _progress(rounds: Iterable[int], label: str) -> Iterable[int]:
    """Show a bar on a terminal's standard error."""
    if not sys.stderr.isatty():
        yield from rounds
        return
    with click.progressbar(rounds, label=label, file=sys.stderr) as bar:
        yield from bar
