"""Values under /proc/sys, of the network namespace of the calling thread where they are per namespace."""

from __future__ import annotations

from pathlib import Path

from flannel_ebpf.base.errors import DeviceMissing, KernelError

_HOST, _OWN = Path("/host/proc/sys"), Path("/proc/sys")
_ROOT = _HOST if (_HOST / "net").is_dir() else _OWN
"""A container can only read its own, so that manifests mount the host's /proc/sys/net again below /host."""


def read(path: str) -> str | None:
    """Return the value at `path` ("net/ipv6/conf/flannel.1/accept_ra"), None when there is no such value.

    Raises KernelError when the kernel refuses.
    """
    try:
        return (_ROOT / path).read_text().strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KernelError(f"sysctl {path}: {error.strerror}", error.errno or 0) from error


def write(path: str, value: str) -> None:
    """Set the value at `path`. Raises DeviceMissing when there is no such value, KernelError otherwise."""
    try:
        (_ROOT / path).write_text(value)
    except FileNotFoundError as error:
        raise DeviceMissing(
            f"sysctl {path}: not there (device or kernel module missing)", error.errno or 0
        ) from error
    except OSError as error:
        raise KernelError(f"sysctl {path} = {value!r}: {error.strerror}", error.errno or 0) from error
