"""Waiting for the kernel's news on a thread of its own, and telling of them not too often."""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Iterable, Mapping

_AT_ONCE = 2000
"""Datagrams taken before the change is told; in a flood the rest waits for the next turn."""


def listen(
    sources: Mapping[int, Callable[[], bool]], stopped: int, on_change: Callable[[], None], gather: float
) -> None:
    """Call what belongs to each of `sources` that can be read, and `on_change` soon after one has said yes.

    What comes within `gather` seconds joins the first. Returns once `stopped` can be read.
    """
    while stopped not in (ready := _ready((*sources, stopped), None)):
        if not any(sources[descriptor]() for descriptor in ready):
            continue
        if stopped in _ready((stopped,), gather):
            return
        for _ in range(_AT_ONCE):
            if not (ready := _ready(sources, 0)):
                break
            for descriptor in ready:
                sources[descriptor]()
        on_change()


def _ready(descriptors: Iterable[int], seconds: float | None) -> list[int]:
    """Wait until one can be read, at most so long; return those that can."""
    try:
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        return [found for found, _ in poll.poll(None if seconds is None else seconds * 1000)]
    except OSError:  # no memory: later there will be
        time.sleep(0.1)
        return []
