"""A run as text, plot and page."""

from __future__ import annotations

import re
from collections import Counter
from xml.etree import ElementTree

from perf import page, plot
from perf.results import Series, Table
from perf.table import aligned, markdown, number, refusals, targets


def a_run() -> Table:
    modes = ("host", "kernel-vxlan", "ebpf-vxlan")
    every = [
        Series(mode, metric, unit, lower, {0: 10.0 * at, 1: 12.0 * at}, Counter(packets=4, FAST_VXLAN=3))
        for metric, unit, lower in (("tcp_rr", "k/s", False), ("cpu_per_gbit", "ms/Gbit", True))
        for at, mode in enumerate(modes, 1)
    ]
    return {(one.mode, one.metric): one for one in every}


def test_numbers_have_three_digits() -> None:
    assert [number(value) for value in (None, 0.1234, 9.876, 12.345, 227.8, 10400.0)] == [
        "-",
        "0.12",
        "9.88",
        "12.3",
        "228",
        "10400",
    ]


def test_columns_are_aligned() -> None:
    lines = aligned([["a", "bb"], ["ccc", ""]]).splitlines()
    assert lines == ["| a   | bb |", "|-----|----|", "| ccc |    |"]


def test_table_shows_medians_and_ratios_to_the_incumbent() -> None:
    row = next(line for line in markdown(a_run()).splitlines() if "tcp_rr" in line)
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "tcp_rr",
        "k/s",
        "11.0 (0.50)",
        "22.0",
        "33.0 (1.50)",
    ]


def test_targets_name_what_was_missed() -> None:
    run = a_run()
    assert re.search(r"ebpf-vxlan tcp_rr / kernel-vxlan >= 1.25 *\| 1.50 *\| met", targets(run))
    run["ebpf-vxlan", "tcp_rr"].rounds = {0: 20.0, 1: 24.0}
    assert re.search(r"1.00 *\| missed", targets(run))


def test_refusals_are_told() -> None:
    run = a_run()
    assert refusals(run) == []
    run["host", "tcp_rr"].refused.append("no packet was sent")
    assert refusals(run) == ["host tcp_rr: 1 rounds refused: no packet was sent"]


def test_plot_is_well_formed_and_has_a_bar_for_every_figure() -> None:
    run = a_run()
    run["host", "tcp_rr"].rounds = {}
    root = ElementTree.fromstring(plot.svg(run))  # noqa: S314 - our own text
    bars = root.findall(".//{http://www.w3.org/2000/svg}g/{http://www.w3.org/2000/svg}rect")
    assert len(bars) == len(run) - 1
    lengths = [float(bar.attrib["width"]) for bar in bars]
    assert lengths[1] / lengths[0] == 1.5


def test_page_needs_nothing_else_and_escapes() -> None:
    env = {"date": "2026-01-01", "rounds": 2, "seconds": 1, "processor": "a <b> c"}
    text = page.html(env, a_run(), {"host": "the nodes"})
    assert "a &lt;b&gt; c" in text
    assert "75.0%" in text
    assert not re.search(r"(src|href)=|@import|url\(", text)
