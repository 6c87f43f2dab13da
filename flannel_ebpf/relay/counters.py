"""The relay's counters, in a file that outlives a look at it: writers map it, readers just read it.

    u64 pid of the relay (0 until it is ready), u64 rows,
    then per worker one row of u64 in the order of NAMES; host byte order

Every packet the relay takes from the TUN or the socket is counted once, under one `tx_` or `rx_` name; with
`--source-check=count` one of a wrong source counts as that and as what became of it.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path

from flannel_ebpf.base.errors import KernelError

NAMES = (
    "tx_sent",  # to a peer
    "tx_ipv6",
    "tx_malformed",  # shorter than an IPv4 header, or no IPv4
    "tx_oversize",  # longer than the MTU
    "tx_no_route",  # no lease covers the destination
    "tx_ttl",
    "tx_error",  # the kernel refused the datagram
    "rx_delivered",  # into the TUN
    "rx_malformed",
    "rx_truncated",  # datagram shorter than the packet's total length
    "rx_oversize",
    "rx_not_member",  # sender holds no lease
    "rx_foreign_source",  # inner source is outside the sender's subnets
    "rx_ttl",
    "rx_error",  # the kernel refused the packet: TUN is down
    "icmp_unreachable",  # answers to tx_no_route, made here
    "tx_bytes",  # inner bytes of tx_sent
    "rx_bytes",  # inner bytes of rx_delivered
)
INDEX = {name: number for number, name in enumerate(NAMES)}
_HEAD = struct.Struct("=QQ")
_ROW = struct.Struct(f"={len(NAMES)}Q")


class Counters:
    """The file as its writer sees it: `row(n)` is a view of u64 that worker `n` alone adds to."""

    def __init__(self, path: Path | None, rows: int) -> None:
        self._rows = rows
        size = _HEAD.size + rows * _ROW.size
        if path is None:
            self._map = mmap.mmap(-1, size)
        else:
            self._map = _shared(path, size)
        _HEAD.pack_into(self._map, 0, 0, rows)

    def ready(self) -> None:
        """Sign the file with our pid: from now on the relay carries packets."""
        _HEAD.pack_into(self._map, 0, os.getpid(), self._rows)

    def row(self, number: int) -> memoryview:
        """Return the counters of one worker, all zero at the start of the relay."""
        start = _HEAD.size + number * _ROW.size
        return memoryview(self._map)[start : start + _ROW.size].cast("Q")


def _shared(path: Path, size: int) -> mmap.mmap:
    new = path.with_name(path.name + ".new")
    try:
        with new.open("w+b") as file:
            file.truncate(size)
            shared = mmap.mmap(file.fileno(), size)
        new.rename(path)
    except OSError as error:
        raise KernelError(f"relay's counters {path}: {error.strerror}", error.errno or 0) from error
    return shared


def read(path: Path) -> tuple[int, dict[str, int]]:
    """Return the pid that wrote the file and the sum of all rows; (0, all zero) when there is none."""
    try:
        data = path.read_bytes()
        pid, rows = _HEAD.unpack_from(data)
        table = [_ROW.unpack_from(data, _HEAD.size + row * _ROW.size) for row in range(rows)]
    except (OSError, struct.error):
        return 0, dict.fromkeys(NAMES, 0)
    return pid, {name: sum(row[number] for row in table) for name, number in INDEX.items()}
