"""Memory that nobody uses is given back (mallopt(3), malloc_trim(3)), and seldom looked for.

Python looks for cycles of objects each time that 700 more are there, and everything that leases are made of
has none: with 50,000 leases to look at, that took half of a start's CPU.
"""

from __future__ import annotations

import ctypes
import gc

_M_ARENA_MAX = -8
_FEW = 50_000
"""New objects, some MB, after which Python looks for cycles among them."""
_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """Have all threads allocate in one place: each of their own would keep some MB, and they seldom meet.

    Called before there are threads. A C library without the call has no arenas either.
    """
    if hasattr(_libc, "mallopt"):
        _libc.mallopt(_M_ARENA_MAX, 1)


def look_rarely() -> None:
    """Have Python look for cycles seldom, and never at what is there already."""
    gc.set_threshold(_FEW, 20)
    gc.freeze()


def settle() -> None:
    """Have Python look no more at what stays, and return what was freed to the kernel.

    For after the first pass, and one that wrote thousands of objects.
    """
    gc.collect()
    gc.freeze()
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)
