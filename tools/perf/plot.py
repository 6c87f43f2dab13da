"""Bars as SVG: one small panel for each metric, all modes in it, with the range of the rounds. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from perf.results import Series, Table, ratio
from perf.table import BASE, metrics_of, modes_of, number

COLORS = {"host": "#9aa5b1", "kernel": "#e0a458", "udp-relay": "#c9704f", "ebpf": "#2f7ebc"}
PANEL, LABEL, ROW, HEAD, GAP = 420, 132, 18, 34, 16
BAR = PANEL - LABEL - 110
TEXT = 'font-family="system-ui, sans-serif" font-size="12" fill="#24303c"'


def svg(table: Table, columns: int = 2) -> str:
    """Return a complete SVG document of all metrics of a table."""
    modes, metrics = modes_of(table), metrics_of(table)
    height = HEAD + ROW * len(modes) + GAP
    rows = -(-len(metrics) // columns)
    width = columns * (PANEL + GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {rows * height}" width="{width}">'
    ]
    parts.append('<rect width="100%" height="100%" fill="#ffffff"/>')
    for index, metric in enumerate(metrics):
        x, y = index % columns * (PANEL + GAP), index // columns * height
        parts.append(f'<g transform="translate({x},{y})">')
        parts += _panel([table[mode, metric] for mode in modes], table.get((BASE, metric)))
        parts.append("</g>")
    return "\n".join([*parts, "</svg>"])


def _panel(every: list[Series], base: Series | None) -> Iterator[str]:
    unit = f"{every[0].unit}, {'less' if every[0].lower else 'more'} is better"
    yield f'<text x="4" y="20" {TEXT} font-weight="600">{every[0].metric}</text>'
    yield (f'<text x="{PANEL - 4}" y="20" {TEXT} opacity="0.65" text-anchor="end">{unit}</text>')
    top = max((max(one.rounds.values()) for one in every if one.rounds), default=0.0) or 1.0
    for index, one in enumerate(every):
        yield from _bar(one, base, HEAD + ROW * index, BAR / top)


def _bar(one: Series, base: Series | None, y: int, scale: float) -> Iterator[str]:
    middle = y + ROW / 2 - 2
    yield f'<text x="{LABEL - 6}" y="{middle + 4}" {TEXT} text-anchor="end">{escape(one.mode)}</text>'
    if one.median is None:
        yield f'<text x="{LABEL}" y="{middle + 4}" {TEXT} opacity="0.65">refused</text>'
        return
    length = one.median * scale
    low, high = (LABEL + edge(one.rounds.values()) * scale for edge in (min, max))
    size = f'width="{length:.1f}" height="{ROW - 5}" rx="2"'
    yield f'<rect x="{LABEL}" y="{y}" {size} fill="{_color(one.mode)}"/>'
    yield f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="#24303c" stroke-width="1.5"/>'
    relative = ratio(one, base) if one is not base else None
    times = f'  <tspan opacity="0.6">{relative:.2f}x</tspan>' if relative is not None else ""
    place = f'x="{max(high, LABEL + length) + 6:.1f}" y="{middle + 4}"'
    yield f'<text {place} {TEXT} xml:space="preserve">{number(one.median)}{times}</text>'


def _color(mode: str) -> str:
    return next((color for name, color in COLORS.items() if mode.startswith(name)), "#777777")
