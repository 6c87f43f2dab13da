"""What this process counts of its own work, for metrics: totals since it began, and marks of when.

One tally for the whole process, as Prometheus' own client has one registry: whoever has something to count
says so where it happens, and nothing has to be handed through for it. Adding to a number is atomic enough: a
scrape may miss the latest one.
"""

from __future__ import annotations

from collections import defaultdict

TOTALS: defaultdict[tuple[str, ...], float] = defaultdict(float)
"""(name, label values...) -> total."""

MARKS: dict[str, float] = {}
"""Name -> seconds on CLOCK_BOOTTIME of the latest such event, or of one that is due."""


def count(name: str, *labels: str, by: float = 1) -> None:
    """Add to the total `name` of these label values."""
    TOTALS[name, *labels] += by


def mark(name: str, clock: float) -> None:
    """Note when something happened last, or will happen."""
    MARKS[name] = clock
