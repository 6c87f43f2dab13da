"""A log line is one line of bounded length, whoever wrote what is in it."""

from __future__ import annotations

import json
import logging

import pytest

from flannel_ebpf.commands.logs import LONGEST, JsonFormatter, KlogFormatter


def record(message: str) -> logging.LogRecord:
    return logging.LogRecord("flannel_ebpf", logging.WARNING, "loop.py", 7, "lease %s", (message,), None)


@pytest.mark.parametrize("message", ["\x1b[2J\x07", "x" * 1_000_000, "two\nlines"])
def test_a_line_is_bounded_and_moves_no_cursor(message: str) -> None:
    line = KlogFormatter().format(record(message))
    assert "loop.py:7] lease " in line
    assert line.isprintable()
    assert len(line) < LONGEST + 200
    told = json.loads(JsonFormatter().format(record(message)))["msg"]
    assert told.isprintable()
    assert line.endswith(told)


def test_a_trace_is_on_the_same_line() -> None:
    try:
        raise ValueError("a\tb")
    except ValueError as error:
        found = record("one")
        found.exc_info = (type(error), error, error.__traceback__)
    line = KlogFormatter().format(found)
    assert line.isprintable()
    assert line.endswith(r"ValueError: a\tb")
