from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from flannel_ebpf.commands.diagnose.console import Column, age, short, table


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (1.5e9, "1.50G"),
        (3e15, "3000.0T"),
        (0.5, "0.50"),
    ],
)
def test_numbers_have_at_most_four_digits(number: float, text: str) -> None:
    assert short(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0s"), (9.94, "9.9s"), (10, "10s"), (59, "59s"), (60, "1m00s"), (184, "3m04s"), (3599, "59m59s"),
     (7800, "2h10m"), (86_399, "23h59m"), (443_000, "5d03h")],
)  # fmt: skip
def test_ages_have_at_most_two_units(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_an_end_of_ipv6_is_no_markup() -> None:
    out = Console(file=StringIO(), width=80)
    out.print(table([Column("REMOTE", lambda row: row["remote"])], [{"remote": "[fd00::1]:80"}]))
    assert isinstance(out.file, StringIO)
    assert "[fd00::1]:80" in out.file.getvalue()
