"""Objects by the octets that told of them: what the kernel tells again, just so, is not parsed again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Recognised(Generic[_T]):
    """The last dump of one table. `size` octets of a message say all that matters, 0: the whole of it."""

    def __init__(self, size: int = 0) -> None:
        self._size = size or None
        self._known: dict[bytes, _T | None] = {}

    def read(self, bodies: Iterable[bytes], parse: Callable[[bytes], _T | None]) -> list[_T]:
        """Return what the messages tell of, in order; `parse` returns None for what is of no interest.

        Objects of messages that are the same as last time are the same objects.
        """
        before, now = self._known, dict[bytes, _T | None]()
        found = []
        for body in bodies:
            told = body[: self._size]
            one = before[told] if told in before else parse(body)
            now[told] = one
            if one is not None:
                found.append(one)
        self._known = now
        return found
