"""What ends the daemon's waiting: a reason for a pass, or the word to stop.

Both may be said in a signal handler, which runs in the middle of whatever the main thread does: threading's
Event takes a lock there that this thread may hold, and hangs for ever. SimpleQueue.put is reentrant.
"""

from __future__ import annotations

from contextlib import suppress
from queue import Empty, SimpleQueue


class Stop:
    """Set once, from anywhere; waited for by any thread."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[None] = SimpleQueue()
        self._set = False

    def set(self) -> None:
        """End all waiting, now and from now on."""
        self._set = True
        self._queue.put(None)

    def is_set(self) -> bool:
        """Say whether it was set."""
        return self._set

    def wait(self, seconds: float | None = None) -> bool:
        """Wait until it is set, at most so long; say whether it is."""
        if not self._set:
            with suppress(Empty):
                self._queue.get(timeout=seconds)
        if self._set:
            self._queue.put(None)  # for whoever else waits
        return self._set


class Wake:
    """Asked for from any thread, waited for by the loop's."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[bool] = SimpleQueue()
        self._whole = False

    def for_leases(self) -> None:
        """Start a pass: the leases are others, and as far as the caller knows nothing else changed."""
        self._queue.put(False)

    def for_all(self) -> None:
        """Start a pass that looks at everything."""
        self._queue.put(True)

    def wait(self, seconds: float) -> None:
        """Wait until a pass is asked for anew, at most so long."""
        with suppress(Empty):
            self._whole |= self._queue.get(timeout=max(seconds, 0.0))

    def take(self) -> bool:
        """Say whether everything must be looked at; whatever was asked for before this call is answered."""
        with suppress(Empty):
            while True:
                self._whole |= self._queue.get_nowait()
        whole, self._whole = self._whole, False
        return whole
