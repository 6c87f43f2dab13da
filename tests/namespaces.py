"""Network namespaces that the test process itself enters, with the thread that asks for it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

from flannel_ebpf.lab.netns import FOLDER

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: int | str) -> Iterator[None]:
    """Be in a namespace, given by descriptor or by its `ip netns` name: sockets and processes stay there."""
    there = namespace if isinstance(namespace, int) else os.open(FOLDER / namespace, os.O_RDONLY)
    try:
        with _back_home():
            _must(_libc.setns(there, _CLONE_NEWNET))
            yield
    finally:
        if there != namespace:
            os.close(there)


def new_namespace() -> int:
    """Return the descriptor of a new namespace, which lives until the last descriptor is closed."""
    with _back_home():
        _must(_libc.unshare(_CLONE_NEWNET))
        return os.open(_OWN, os.O_RDONLY)


@contextmanager
def _back_home() -> Iterator[None]:
    with open(_OWN, "rb") as home:
        try:
            yield
        finally:
            _must(_libc.setns(home.fileno(), _CLONE_NEWNET))


def _must(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
