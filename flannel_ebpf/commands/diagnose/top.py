"""`flannel-ebpf top`: rates of packets and bytes, per peer and per pod, as they are now."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import click
from rich.console import Group
from rich.live import Live
from rich.table import Table

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose import readings
from flannel_ebpf.commands.diagnose.console import Column, console, json_flag, print_json, short, table
from flannel_ebpf.commands.diagnose.networks import maps_of, network_flag, networks
from flannel_ebpf.commands.diagnose.paths import ip
from flannel_ebpf.commands.diagnose.tables import pods_of
from flannel_ebpf.commands.flags import node_flags, options_from
from flannel_ebpf.kernel.programs.readout import reasons

_SHOWN = 15  # lines of each table on a terminal

_PEERS = (
    Column("PEER", lambda row: row["subnet"]),
    Column("VIA", lambda row: row["public_ip"]),
    Column("SENDS", lambda row: short(row["tx_packets"], "pps"), right=True),
    Column("", lambda row: short(row["tx_bytes"] * 8, "bit/s"), right=True),
    Column("HEARS", lambda row: short(row["rx_packets"], "pps"), right=True),
    Column("", lambda row: short(row["rx_bytes"] * 8, "bit/s"), right=True),
)
_PODS = (
    Column("POD", lambda row: row["ip"] or "silent"),
    Column("DEVICE", lambda row: row["device"]),
    Column("PATH", lambda row: row["path"]),
    Column("SENDS", lambda row: short(row["tx_packets"], "pps"), right=True),
    Column("", lambda row: short(row["tx_bytes"] * 8, "bit/s"), right=True),
    Column("HEARS", lambda row: short(row["rx_packets"], "pps"), right=True),
    Column("", lambda row: short(row["rx_bytes"] * 8, "bit/s"), right=True),
)
_REASONS = (
    Column("WHY PACKETS GO WHERE", lambda row: row["reason"]),
    Column("AT", lambda row: row["hook"]),
    Column("RATE", lambda row: short(row["packets"], "pps"), right=True),
)
_COUNTED = ("tx_packets", "tx_bytes", "rx_packets", "rx_bytes")

Counters = Mapping[tuple[str, ...], Mapping[str, float]]
Rows = dict[str, list[dict[str, Any]]]


@click.command(short_help="Show live rates, per peer and per pod.")
@node_flags
@network_flag
@click.option("--interval", type=click.FloatRange(0.1, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--count", type=click.IntRange(min=0), default=0, help="End after so many; 0: go on.")
@json_flag
def top(only: Network | None, interval: float, count: int, as_json: bool, **values: Any) -> None:
    """Show packets and bits a second, the busiest first: of peers by BPF, of pods by device.

    What BPF hands into a pod past its device's host side is counted there by newer kernels only.
    """
    options = options_from(values)
    out = console()
    live = Live(console=out, auto_refresh=False) if out.is_terminal and not as_json else None
    before, at = _read(options, only), time.monotonic()
    shown = 0
    with live or nullcontext():
        while not count or shown < count:
            time.sleep(interval)
            now, then = _read(options, only), time.monotonic()
            rows = rates(before, now, then - at)
            before, at, shown = now, then, shown + 1
            if as_json:
                print_json("top", rows)
            elif live:
                live.update(_page(rows, _SHOWN), refresh=True)
            else:
                out.print(_page(rows, None))


def _read(options: Options, only: Network | None) -> dict[str, tuple[Counters, dict[tuple[str, ...], Any]]]:
    """Return, for each table, counters by key and what else a row shows."""
    peers: dict[tuple[str, ...], Any] = {}
    pods: dict[tuple[str, ...], Any] = {}
    told = []
    devices = {link["ifname"]: link["stats64"] for link in ip("-stats", "link", "show")}
    for here, folder in maps_of(networks(options, only)):
        peers |= {(row["subnet"],): row for row in readings.peers(folder)}
        for row in pods_of(here):
            stats = devices.get(row["device"])
            if stats:  # what the host side receives, the pod has sent
                counted = {f"tx_{unit}": stats["rx"][unit] for unit in ("packets", "bytes")}
                counted |= {f"rx_{unit}": stats["tx"][unit] for unit in ("packets", "bytes")}
                pods[row["ip"], row["device"]] = {**row, **counted}
        told.append(reasons(folder))
    why = together(told)
    labels = {key: {"reason": key[0], "hook": key[1]} for key in why}
    return {"peers": (peers, peers), "pods": (pods, pods), "reasons": (why, labels)}


def together(
    families: Iterable[Mapping[str, Mapping[str, int]]],
) -> dict[tuple[str, ...], dict[str, float]]:
    """Return the packets of each (reason, hook), of all families' programs, which count apart."""
    found: dict[tuple[str, ...], dict[str, float]] = defaultdict(lambda: {"packets": 0})
    for counted in families:
        for reason, hooks in counted.items():
            for hook, packets in hooks.items():
                found[reason.lower(), hook]["packets"] += packets
    return dict(found)


def rates(before: dict[str, Any], now: dict[str, Any], seconds: float) -> Rows:
    """Return rows of rates a second, those that count most first; what did not move is left out."""
    found: Rows = {}
    for name, (counters, labels) in now.items():
        former = before.get(name, ({}, {}))[0]
        rows = []
        for key, values in counters.items():
            units = [unit for unit in (*_COUNTED, "packets") if unit in values]
            gone = former.get(key, {})
            speed = {unit: max(values[unit] - gone.get(unit, values[unit]), 0) / seconds for unit in units}
            if any(speed.values()):
                rows.append({**labels[key], **{unit: round(rate, 1) for unit, rate in speed.items()}})
        weight = "packets" if name == "reasons" else "bytes"
        rows.sort(key=lambda row: -sum(value for unit, value in row.items() if str(unit).endswith(weight)))
        found[name] = rows
    return found


def _page(rows: Rows, most: int | None) -> Group:
    kinds = (("peers", _PEERS), ("pods", _PODS), ("reasons", _REASONS))
    parts: list[Table | str] = []
    for name, columns in kinds:
        parts += [table(columns, rows[name][:most]), ""]
    return Group(*parts)
