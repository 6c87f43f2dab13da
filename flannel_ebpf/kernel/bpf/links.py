"""Whether BPF programs hang on netfilter's hooks, by links (Linux 6.4). Layout: struct bpf_link_info."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from flannel_ebpf.base.errors import BpfError, BpfUnavailable
from flannel_ebpf.kernel.bpf.syscall import call

_GET_FD_BY_ID, _GET_NEXT_ID, _INFO = 30, 31, 15
_TYPE_NETFILTER = 10
_INFO_SIZE = 64


def has_netfilter_programs() -> bool:
    """Say whether a link to netfilter exists, in any namespace. False where we may not ask."""
    try:
        return any(_type(link) == _TYPE_NETFILTER for link in _links())
    except BpfUnavailable:
        return False


def _links() -> list[int]:
    found: list[int] = []
    while True:
        try:
            attr = struct.pack("=III", found[-1] if found else 0, 0, 0)
            _, out = call(_GET_NEXT_ID, attr, "next BPF link")
        except BpfUnavailable:
            raise
        except BpfError:  # ENOENT: that was the last; EINVAL: a kernel without links
            return found
        found.append(struct.unpack_from("=I", out, 4)[0])


def _type(link: int) -> int:
    try:
        fd, _ = call(_GET_FD_BY_ID, struct.pack("=III", link, 0, 0), f"BPF link {link}")
    except BpfError as error:
        if error.code == errno.ENOENT:  # gone since it was listed
            return 0
        raise
    try:
        return _info(fd)
    finally:
        os.close(fd)


def _info(fd: int) -> int:
    buffer = ctypes.create_string_buffer(_INFO_SIZE)
    call(_INFO, struct.pack("=IIQ", fd, _INFO_SIZE, ctypes.addressof(buffer)), "BPF link's info")
    return int(struct.unpack_from("=I", buffer.raw)[0])
