"""The system call itself, and what its objects have in common: descriptor, pin, description.

Structures follow `union bpf_attr` of linux/bpf.h; its layout is a stable kernel interface.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from pathlib import Path
from typing import Self

from flannel_ebpf.base.errors import BpfError, BpfUnavailable

_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_PIN, _GET, _INFO = 6, 7, 15

_libc = ctypes.CDLL(None, use_errno=True)


def call(command: int, attr: bytes, what: str) -> tuple[int, bytes]:
    """Call bpf(2); return its result and the attribute as the kernel left it.

    `what` is what is being done, for the message. Raises BpfUnavailable without the rights or without BPF,
    BpfError with the kernel's errno otherwise.
    """
    number = _NUMBER.get(platform.machine())
    if number is None:
        raise BpfUnavailable(f"{what}: the bpf system call's number on {platform.machine()} is not known")
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = _libc.syscall(number, command, buffer, len(attr))
    if result >= 0:
        return result, buffer.raw
    code = ctypes.get_errno()
    message = f"{what}: {os.strerror(code)}"
    if code == errno.ENOSYS:
        raise BpfUnavailable(f"{message}: this kernel has no BPF", code)
    if code == errno.EPERM:
        raise BpfUnavailable(f"{message}: {rights()}", code)
    raise RefusedError(message, code, buffer.raw)


def rights() -> str:
    """Return what a process that met EPERM needs.

    Before Linux 5.11 the memory of all BPF objects of a user counts against its limit on locked memory.
    """
    text = "needs root, or CAP_BPF and CAP_NET_ADMIN"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return text
    return f"{text}; before Linux 5.11 also CAP_SYS_RESOURCE, or more locked memory than {limit} bytes"


class RefusedError(BpfError):
    """A refused call together with the attribute, where batch reads leave their count."""

    def __init__(self, message: str, code: int, attr: bytes) -> None:
        super().__init__(message, code)
        self.attr = attr


class Descriptor:
    """A file descriptor of a map or a program, owned; a context manager that closes it."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; the object lives on while it is pinned or attached."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pinned object; BpfError (code ENOENT) when nothing is pinned there."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        fd, _ = call(_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), f"open {path}")
        return cls(fd, str(path))

    def pin(self, path: Path) -> None:
        """Keep the object under a name in bpffs; BpfError (code EEXIST) when the name is taken."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        call(_PIN, struct.pack("=QII", ctypes.addressof(name), self.fd, 0), f"pin {self.name} at {path}")

    def _describe(self, size: int, ask: bytes = b"") -> bytes:
        """Return what the kernel says of the object, `size` bytes; `ask` says where arrays shall go."""
        buffer = ctypes.create_string_buffer(ask, size)
        call(_INFO, struct.pack("=IIQ", self.fd, size, ctypes.addressof(buffer)), f"ask about {self.name}")
        return buffer.raw


def c_string(raw: bytes) -> str:
    """Return the text before the first zero byte."""
    return raw.split(b"\0", 1)[0].decode(errors="replace")
