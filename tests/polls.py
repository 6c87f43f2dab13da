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
    """Return how many times as long as on an idle machine things may take now: tasks per CPU, at least 1."""
    average, _, _, tasks, _ = Path("/proc/loadavg").read_text().split()
    waiting = max(float(average), int(tasks.partition("/")[0]))
    return max(1.0, waiting / (os.cpu_count() or 1))


def eventually(condition: Callable[[], T], what: str | Callable[[], str], within: float = PATIENCE) -> T:
    """Poll until `condition()` is true and return its value; fail when `what` has not happened in time.

    `within` counts seconds of an idle machine: a busy one gets as much more as it has tasks per CPU.
    """
    __tracebackhide__ = True
    start = time.monotonic()
    deadline = start + within
    while not (found := condition()):
        now = time.monotonic()
        deadline = max(deadline, start + within * stretch())
        if now >= deadline:
            said = what if isinstance(what, str) else what()
            raise AssertionError(f"not within {now - start:.1f} s: {said}")
        time.sleep(min(0.005 + (now - start) / 10, 0.2))
    return found
