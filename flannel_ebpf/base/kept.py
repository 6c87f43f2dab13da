"""Values that are costly to build and asked for again and again: kept as long as they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")


class Kept(Generic[_T]):
    """A function's results by its arguments, as a decorator.

    Unlike functools.lru_cache it has no size, so no number of peers is too large for it, and what is not
    asked for any more is dropped after a while: two generations are held, and the older goes when the newer
    has been asked for twice as often as it has entries.
    """

    def __init__(self, build: Callable[..., _T]) -> None:
        self._build = build
        self._now: dict[tuple[Hashable, ...], _T] = {}
        self._before: dict[tuple[Hashable, ...], _T] = {}
        self._asked = 0

    def __call__(self, *arguments: Any) -> _T:
        """Return what the function returns for these arguments; it never returns None."""
        self._asked += 1
        found = self._now.get(arguments)
        if found is None:
            found = self._before.get(arguments)
            if found is None:
                found = self._build(*arguments)
            if self._asked > 2 * len(self._now) + 64:
                self._before, self._now, self._asked = self._now, {}, 0
            self._now[arguments] = found
        return found

    def __len__(self) -> int:
        return len(self._now) + len(self._before)


def same_objects(some: Any, others: Any) -> bool:
    """Say whether two sequences hold the very same objects: what did not change is never made anew."""
    return len(some) == len(others) and all(one is other for one, other in zip(some, others, strict=True))
