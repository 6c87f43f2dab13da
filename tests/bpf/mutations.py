"""What fuzzing does in either family: faults that need no knowledge of headers, and runs of many frames."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from flannel_ebpf.kernel.bpf.programs import TestRun
from tests.bpf.node import Node

LEAST, MOST = 54, 400
"""Octets that a frame is cut to at the least, and up to which it may grow."""


def flip(choose: random.Random, frame: bytearray) -> None:
    frame[choose.randrange(len(frame))] ^= 1 << choose.randrange(8)


def resize(choose: random.Random, frame: bytearray) -> None:
    if choose.random() < 0.5:
        del frame[choose.randrange(LEAST, max(LEAST + 1, len(frame))) :]
    elif len(frame) < MOST:
        frame += choose.randbytes(choose.randint(1, 30))


def frames(
    mutated: Callable[[random.Random], bytes], shortest: int, count: int, seed: int
) -> Iterator[bytes]:
    """Make `count` mutated frames, and leave out those that no program is asked about."""
    choose = random.Random(seed)
    for _ in range(count):
        frame = mutated(choose)
        if len(frame) >= shortest:
            yield frame


def judged(
    node: Node, name: str, made: Iterable[bytes], verdicts: Iterable[int], ctx: bytes = b""
) -> Iterator[tuple[bytes, TestRun]]:
    """Run a program on each frame; at the end each was counted once, and none of the verdicts was rare."""
    program, seen = node.programs[name], Counter[int]()
    before = sum(node.reasons(name).values())
    for frame in made:
        ran = program.test_run(frame, ctx)
        seen[ran.verdict] += 1
        yield frame, ran
    assert sum(node.reasons(name).values()) - before == seen.total(), "each counted once"
    assert min(seen[one] for one in verdicts) > seen.total() // 50, f"one-sided fuzz: {seen}"
