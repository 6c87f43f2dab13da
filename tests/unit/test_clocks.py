"""A clock that jumps changes nothing: no decision is made by the clock that can be set."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "flannel_ebpf"
SETTABLE = {"time", "time_ns", "CLOCK_REALTIME", "CLOCK_TAI", "now", "utcnow", "today"}


def settable_clocks(source: str) -> Iterator[str]:
    """Every use of `time.time()`, `datetime.now()` and the like in a source text."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(ast.Name("time" | "datetime" | "date"), attribute) if attribute in SETTABLE:
                yield f"{attribute} in line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module in {"time", "datetime"}:
            yield from (f"{one.name} in line {node.lineno}" for one in node.names if one.name in SETTABLE)


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_only_clocks_that_nobody_can_set_are_read(path: Path) -> None:
    assert list(settable_clocks(path.read_text())) == []


@pytest.mark.parametrize(
    "source",
    [
        "import time\nx = time.time()",
        "import time\nx = time.clock_gettime(time.CLOCK_REALTIME)",
        "from time import time_ns",
        "from datetime import datetime\nx = datetime.now()",
    ],
)
def test_the_settable_ones_are_found(source: str) -> None:
    assert list(settable_clocks(source))


def test_the_others_are_not() -> None:
    source = (
        "import time\nx = time.monotonic() + time.thread_time() + time.clock_gettime(time.CLOCK_BOOTTIME)"
    )
    assert list(settable_clocks(source)) == []
