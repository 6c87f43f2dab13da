"""How much of a CPU passes may take that others ask for by changing the kernel's tables."""

from __future__ import annotations

SHARE = 0.1
"""Part of one CPU that such passes may take for long."""
BURST = 1.0
"""Seconds of CPU that they may take at once, so that what is rare is answered at once."""


class Budget:
    """A bucket of CPU seconds that fills slowly; `now` is seconds of a clock that never jumps."""

    def __init__(self) -> None:
        self._left = BURST
        self._at = 0.0

    def spend(self, seconds: float, now: float) -> None:
        """Note what a pass took."""
        self._left = self._filled(now) - seconds
        self._at = now

    def wait(self, now: float) -> float:
        """Return the seconds until the next pass may begin, 0 when it may now."""
        return max(-self._filled(now) / SHARE, 0.0)

    def _filled(self, now: float) -> float:
        return min(self._left + (now - self._at) * SHARE, BURST)
