"""The tables of iptables-legacy, read as its tool reads them. Nobody tells of their changes.

Calls: linux/netfilter_ipv4/ip_tables.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct
import zlib
from pathlib import Path

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.kernel.firewall.decode import legacy
from flannel_ebpf.kernel.firewall.decode.legacy import INFO, Table

_NAMES = Path("/proc/thread-self/net/ip_tables_names")
_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_*
_HEAD = struct.Struct("=32sI4x")  # ipt_get_entries
_TRIES = 5
_libc = ctypes.CDLL(None, use_errno=True)


def names() -> list[str]:
    """Return the tables that exist in this network namespace; to ask for another would make it.

    None on a kernel without iptables-legacy.
    """
    try:
        return _NAMES.read_text().split()
    except OSError:
        return []


def read(name: str) -> Table:
    """Return one table. Raises KernelError."""
    return legacy.decode(name, *_read(name))


def digest(name: str, start: int) -> int:
    """Return a checksum of a table but for its counters, continuing from `start`. Raises KernelError."""
    info, entries = _read(name)
    return zlib.crc32(legacy.without_counters(entries), zlib.crc32(info, start))


def _read(name: str) -> tuple[bytes, bytes]:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as asking:
        for _ in range(_TRIES):
            info = _ask(asking, _GET_INFO, name.encode().ljust(INFO.size, b"\0"), name)
            size = INFO.unpack(info)[-1]
            asked = _HEAD.pack(name.encode(), size) + bytes(size)
            try:
                return info, _ask(asking, _GET_ENTRIES, asked, name)[_HEAD.size :]
            except KernelError as error:
                if error.code != errno.EAGAIN:  # it was replaced between the questions
                    raise
    raise KernelError(f"iptables-legacy table {name} changes faster than it can be read", errno.EAGAIN)


def _ask(asking: socket.socket, option: int, question: bytes, name: str) -> bytes:
    """Call getsockopt with a question in the buffer, as Python's own cannot."""
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint32(len(question))
    if _libc.getsockopt(asking.fileno(), socket.IPPROTO_IP, option, buffer, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise KernelError(f"iptables-legacy table {name}: {os.strerror(code)}", code)
    return buffer.raw[: length.value]
