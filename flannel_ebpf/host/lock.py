"""One daemon per network, and per overlay device, on a host."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from flannel_ebpf.base.errors import AlreadyRunning, ConfigError
from flannel_ebpf.base.family import Network
from flannel_ebpf.host.files import read_small
from flannel_ebpf.host.places import place

log = logging.getLogger(__name__)

Role = Literal["daemon", "down"]
"""What a lock is held for."""

_NAME = "flannel-ebpf "


@contextmanager
def network_lock(state_dir: Path, network: Network, role: Role = "daemon") -> Iterator[Path]:
    """Hold the network's lock file, `<state_dir>/10.1.0.0-16.lock`, which contains our process id and role.

    The kernel releases it however the process ends. The file stays; a purge, which holds it, may remove it.
    Raises AlreadyRunning, or ConfigError when the file cannot be made.
    """
    path = lock_path(state_dir, network)
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor = _lock(path, network, role)
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

    It is an abstract socket's name: one per network namespace, gone with the process. Any user may bind one,
    so a name that only other users' processes hold stops nobody. Raises AlreadyRunning with `advice`.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as name:
        try:
            name.bind(f"\0{_NAME}{what}")
        except OSError as error:
            owners = _owners(what)
            genuine = [pid for pid, uid in owners.items() if uid == os.geteuid()]
            if owners and not genuine:
                log.warning(
                    "%s is claimed by processes of other users, which is ignored: %s", what, [*owners]
                )
            else:
                by = f" ({_process(genuine[0])})" if genuine else ""
                taken = f"{what} is served by another flannel-ebpf on this host{by}"
                raise AlreadyRunning(f"{taken}: {advice}") from error
        yield


def claimant(what: str) -> int:
    """Return the process that holds `what` by `claim`, 0 when none of this user's is to be seen."""
    return next((pid for pid, uid in _owners(what).items() if uid == os.geteuid()), 0)


def _owners(what: str) -> dict[int, int]:
    """Return process id -> user id of those who have the socket open; empty when they are in another place.

    The kernel's list of names has the socket's inode, and a process that has it open shows it.
    """
    names = (line.split(maxsplit=7) for line in Path("/proc/thread-self/net/unix").read_text().splitlines())
    sockets = {f"socket:[{words[6]}]" for words in names if words[7:] == [f"@{_NAME}{what}"]}
    return dict(_users_of(sockets)) if sockets else {}


def _users_of(sockets: set[str]) -> Iterator[tuple[int, int]]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or shows nothing to us
            if any(os.readlink(process / "fd" / number) in sockets for number in os.listdir(process / "fd")):
                yield int(process.name), process.stat().st_uid


def lock_path(state_dir: Path, network: Network) -> Path:
    """Return where the lock of a network lies."""
    return place(state_dir, network, ".lock")


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


def serving(path: Path) -> int:
    """Return the process that holds the lock file as a daemon, 0 when none does.

    The file must name the holder: one that has only just taken the lock has not yet said what for. Daemons of
    older versions wrote nothing but their number.
    """
    pid = holder(path)
    try:
        words = read_small(path).split()
    except (OSError, ValueError):
        return 0
    return pid if words[:1] == [str(pid)] and words[1:] != ["down"] else 0


def _lock(path: Path, network: Network, role: Role) -> int:
    while True:
        # Whoever may read the file could lock it; a link in its place would have its target overwritten.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            _take(descriptor, path, network)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                with suppress(OSError):  # the disk is full; the kernel knows who holds it
                    os.ftruncate(descriptor, 0)
                    os.pwrite(descriptor, f"{os.getpid()} {role}\n".encode("ascii"), 0)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # a purge removed the file between our open and our lock: this lock is nobody's


def _take(descriptor: int, path: Path, network: Network) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise AlreadyRunning(
            f"network {network} is served by {_process(holder(path))}, which holds {path}: "
            "stop that process, or give this one another --state-dir and --etcd-prefix"
        ) from error


def _process(pid: int) -> str:
    return f"process {pid}" if pid else "a process that is not to be seen from here"
