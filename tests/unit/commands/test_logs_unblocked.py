"""Who reads the log, or does not, never stops the daemon."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from typing import TextIO

import pytest

from flannel_ebpf.commands.logs import KlogFormatter, UnblockedHandler


@pytest.fixture
def pipe() -> Iterator[tuple[int, TextIO]]:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        yield reading, stream
    os.close(reading)


def logger(stream: TextIO) -> logging.Logger:
    handler = UnblockedHandler(stream)
    handler.setFormatter(KlogFormatter())
    made = logging.Logger("test")
    made.addHandler(handler)
    return made


def test_a_pipe_that_nobody_reads_costs_lines_and_no_time(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    log = logger(stream)
    for number in range(2000):
        log.warning("line %d %s", number, "x" * 100)
    read = os.read(reading, 1 << 20).decode()
    assert "line 0 " in read
    assert "line 1999 " not in read
    log.warning("again")
    again = os.read(reading, 1 << 20).decode()
    assert "again (" in again
    assert "lines before were lost" in again


def test_a_line_longer_than_a_pipe_takes_at_once_is_cut(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    logger(stream).warning("x" * 1_000_000)
    assert len(os.read(reading, 1 << 20)) < 4096


def test_a_reader_that_is_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        logger(stream).warning("to nobody")


def test_text_that_is_no_unicode_is_written(pipe: tuple[int, TextIO]) -> None:
    reading, stream = pipe
    logger(stream).warning("comment %s", "B\udcfcro")
    assert b"B\\udcfcro" in os.read(reading, 1000)
