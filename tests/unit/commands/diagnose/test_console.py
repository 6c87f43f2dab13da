from __future__ import annotations

import pytest

from flannel_ebpf.commands.diagnose.console import age, short


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
