"""Keeping the C library from holding memory that nobody uses: mallopt(3), malloc_trim(3)."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Have all threads allocate in one place: each of their own would keep some MB, and they seldom meet.

    Called before there are threads. A C library without the call has no arenas either.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def give_back() -> None:
    """Return what was freed to the kernel; for after a pass that wrote thousands of objects."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
