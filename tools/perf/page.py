"""The run as one HTML page that needs nothing else: targets, plots, all figures, environment. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from perf import proof
from perf.plot import svg
from perf.results import TARGETS, Table
from perf.table import BASE, metrics_of, modes_of, refusals, spread

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #24303c; max-width: 62rem; margin: 2rem auto }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums }
td, th { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #e3e8ee }
.met { color: #1f7a3d } .missed { color: #b3361e }
.wide { overflow-x: auto } svg { max-width: 100%; height: auto }
"""


def html(env: dict[str, Any], table: Table, texts: dict[str, str]) -> str:
    """Return the page. `texts` says what each mode and metric is."""
    modes = modes_of(table)
    figures = [
        [metric, table[modes[0], metric].unit, *(spread(table[mode, metric]) for mode in modes)]
        for metric in metrics_of(table)
    ]
    shares = [
        [metric, *(f"{proof.carried_by_bpf(table[mode, metric].path):.1%}" for mode in modes)]
        for metric in metrics_of(table)
    ]
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>flannel-ebpf: measured</title>",
        f"<style>{STYLE}</style>",
        f"<h1>flannel-ebpf, measured {escape(str(env['date']))}</h1>",
        f"<p>Two nodes on one machine, {env['rounds']} rounds of {env['seconds']} s; bars are medians, lines "
        f"reach from the lowest to the highest round, ratios are to {BASE}, taken round by round.</p>",
        svg(table),
        "<h2>Targets</h2>",
        _targets(table),
        "<h2>Figures: median (lowest-highest)</h2>",
        _grid(["workload", "unit", *modes], figures),
        "<h2>Share of the packets that BPF carried</h2>",
        _grid(["workload", *modes], shares),
        *(f"<p>Refused: {escape(line)}</p>" for line in refusals(table)),
        "<h2>What they are</h2>",
        _grid(["name", ""], texts.items()),
        "<h2>Environment</h2>",
        _grid(["", ""], ((name, str(value)) for name, value in env.items())),
    ]
    return "\n".join(parts)


def _grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = ["".join(f"<th>{escape(cell)}</th>" for cell in head)]
    lines += ["".join(f"<td>{escape(cell)}</td>" for cell in row) for row in rows]
    return f"<div class=wide><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def _targets(table: Table) -> str:
    rows = []
    for target in TARGETS:
        reached = target.reached(table)
        if reached is not None:
            word = "met" if target.met(reached) else "missed"
            rows.append(f"<tr><td>{escape(target.text)}<td>{reached:.2f}<td class={word}>{word}")
    return f"<table><tr><th>target<th>reached<th>{''.join(rows)}</table>"
