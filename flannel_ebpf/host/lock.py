"""One daemon per network, and per overlay device, on a host."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

from flannel_ebpf.base.errors import AlreadyRunning, ConfigError


@contextmanager
def network_lock(state_dir: Path, network: IPv4Network) -> Iterator[Path]:
    """Hold the network's lock file, `<state_dir>/10.1.0.0-16.lock`, which contains our process id.

    The kernel releases it however the process ends. The file stays; a purge, which holds it, may remove it.
    Raises AlreadyRunning, or ConfigError when the file cannot be made.
    """
    path = lock_path(state_dir, network)
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = _lock(path, network)
    except OSError as error:
        raise ConfigError(
            "--state-dir", str(state_dir), f"a folder that can be written ({error.strerror})"
        ) from error
    try:
        yield path
    finally:
        os.close(descriptor)


@contextmanager
def claim(what: str, advice: str) -> Iterator[None]:
    """Hold a thing that this host has once, such as "device flannel.1", whatever state folder is in use.

    It is an abstract socket's name: one per network namespace, gone with the process. Raises AlreadyRunning
    with `advice`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            name.bind(f"\0flannel-ebpf {what}")
        except OSError as error:
            taken = f"{what} is served by another flannel-ebpf on this host"
            raise AlreadyRunning(f"{taken}: {advice}") from error
        yield


def lock_path(state_dir: Path, network: IPv4Network) -> Path:
    """Return where the lock of a network lies."""
    return state_dir / f"{network.network_address}-{network.prefixlen}.lock"


def holder(path: Path) -> int:
    """Return the process that holds the lock file now, 0 when none does.

    The kernel's own list is asked: the file may still name a process that is gone, or another since.
    """
    try:
        found = path.stat()
    except OSError:
        return 0
    inode = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()  # proc(5): number, kind, ADVISORY, access, pid, device:inode, start, end
        if fields[1] == "FLOCK" and fields[5] == inode:
            return int(fields[4])
    return 0


def _lock(path: Path, network: IPv4Network) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _take(descriptor, path, network)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a purge removed the file between our open and our lock: this lock is nobody's


def _take(descriptor: int, path: Path, network: IPv4Network) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AlreadyRunning(
            f"network {network} is served by process {holder(path) or 'unknown'}, which holds {path}: "
            "stop that process, or give this one another --state-dir and --etcd-prefix"
        ) from error
