"""How tests wait: for a condition, until a deadline that only something broken misses."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 10.0
"""Seconds that are plenty for whatever takes moments on an idle machine."""


def stretch() -> float:
    """Return how many times as long as on an idle machine things may take now: tasks per CPU, 1 to 10."""
    average, _, _, tasks, _ = Path("/proc/loadavg").read_text().split()
    wanting = max(float(average), int(tasks.partition("/")[0]))
    return min(max(1.0, wanting / (os.cpu_count() or 1)), 10.0)


def eventually(condition: Callable[[], T], what: str | Callable[[], str], within: float = PATIENCE) -> T:
    """Poll until `condition()` is true and return its value; fail when `what` has not happened in time.

    `within` counts seconds of an idle machine; on a busy one they pass more slowly, by its tasks per CPU.
    """
    __tracebackhide__ = True
    start = last = time.monotonic()
    left = within
    while not (found := condition()):
        if left <= 0:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {last - start:.1f} s: {said}")
        time.sleep(min(0.005 + (last - start) / 10, 0.2))
        now = time.monotonic()
        left, last = left - (now - last) / stretch(), now
    return found


def unchanging(read: Callable[[], T], what: str, seconds: float = 1.5) -> T:
    """Return what `read()` returns once that has been the same for so many seconds."""
    __tracebackhide__ = True
    last, since = read(), time.monotonic()

    def rests() -> bool:
        nonlocal last, since
        now = read()
        if now != last:
            last, since = now, time.monotonic()
        return time.monotonic() - since > seconds

    eventually(rests, f"{what} is the same for {seconds:g} s", 20 * seconds)
    return last
