"""The run as text: a table of medians, the targets, what was refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from perf.results import TARGETS, Series, Table, ratio

BASE = "kernel-vxlan"
"""The incumbent: ratios in the table are to it."""


def number(value: float | None) -> str:
    """Return a figure with three digits that mean something."""
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def modes_of(table: Table) -> list[str]:
    """Return the modes of a table in their order."""
    return list(dict.fromkeys(mode for mode, _ in table))


def metrics_of(table: Table) -> list[str]:
    """Return the metrics of a table in their order."""
    return list(dict.fromkeys(metric for _, metric in table))


def spread(series: Series) -> str:
    """Return `median (min-max)`."""
    if not series.rounds:
        return "refused"
    values = series.rounds.values()
    return f"{number(series.median)} ({number(min(values))}-{number(max(values))})"


def markdown(table: Table) -> str:
    """Return the medians, each with its ratio to the kernel's vxlan, as a Markdown table."""
    modes = modes_of(table)
    rows = [["workload", "unit", *modes]]
    for metric in metrics_of(table):
        base = table.get((BASE, metric))
        cells = [table[mode, metric] for mode in modes]
        rows.append([metric, cells[0].unit, *(_cell(one, base) for one in cells)])
    return aligned(rows)


def targets(table: Table) -> str:
    """Return each target with what was reached."""
    rows = [["target", "reached", ""]]
    for target in TARGETS:
        reached = target.reached(table)
        if reached is not None:
            rows.append([target.text, f"{reached:.2f}", "met" if target.met(reached) else "missed"])
    return aligned(rows)


def refusals(table: Table) -> list[str]:
    """Return a line for each series of which a round was refused."""
    return [
        f"{one.mode} {one.metric}: {len(one.refused)} rounds refused: {one.refused[-1]}"
        for one in table.values()
        if one.refused
    ]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Return rows as a Markdown table with columns of equal width; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]

    def lines() -> Iterator[str]:
        for index, row in enumerate(rows):
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            yield f"| {' | '.join(cells)} |"
            if index == 0:
                yield f"|{'|'.join('-' * (width + 2) for width in widths)}|"

    return "\n".join(lines())


def _cell(one: Series, base: Series | None) -> str:
    if not one.rounds:
        return "refused"
    relative = ratio(one, base) if one is not base else None
    return number(one.median) + (f" ({relative:.2f})" if relative is not None else "")
