"""What starts a pass, and whether a short one may do."""

from __future__ import annotations

import threading


class Wake:
    """Set from any thread, waited for by the loop's."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._whole = False

    def for_leases(self) -> None:
        """Start a pass: the leases are others, and as far as the caller knows nothing else changed."""
        self._event.set()

    def for_all(self) -> None:
        """Start a pass that looks at everything."""
        self._whole = True  # before the other: whoever is woken by that must find this
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Wait until a pass is asked for, at most so long."""
        self._event.wait(seconds)

    def take(self) -> bool:
        """Say whether everything must be looked at; whatever was asked for before this call is answered."""
        self._event.clear()
        if not self._whole:
            return False
        self._whole = False  # only now: one that was set since the look above must not be lost
        return True
