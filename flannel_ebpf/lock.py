"""One daemon per network on a host."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

from flannel_ebpf.errors import AlreadyRunning, ConfigError


@contextmanager
def network_lock(state_dir: Path, network: IPv4Network) -> Iterator[Path]:
    """Hold the network's lock file, `<state_dir>/10.1.0.0-16.lock`, which contains our process id.

    The kernel releases it however the process ends. The file stays: removing it would let a third daemon
    lock a new file of this name while a second one waits on the old. Raises AlreadyRunning, or ConfigError
    when the file cannot be made.
    """
    path = state_dir / f"{network.network_address}-{network.prefixlen}.lock"
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            "--state-dir", str(state_dir), f"a folder that can be written ({error.strerror})"
        ) from error
    try:
        _lock(descriptor, path, network)
        yield path
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, network: IPv4Network) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
        raise AlreadyRunning(
            f"network {network} is served by process {holder}, which holds {path}: "
            "stop that process, or give this one another --state-dir and --etcd-prefix"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode("ascii"), 0)
