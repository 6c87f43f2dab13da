"""The relay as the daemon sees it: a process that is started, adopted, told its peers, and stopped.

The relay holds an inherited file lock, so "it runs" is a fact of the kernel and not of a pid file; a
daemon that starts anew finds the relay of its predecessor and leaves it running. The lock is of the "open
file description" kind: it passes to a child, and asking about it does not take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal

from flannel_ebpf.base.errors import ConfigError, KernelError, edge
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.host.files import read_small, replace_file
from flannel_ebpf.kernel.netlink import tun
from flannel_ebpf.relay import counters
from flannel_ebpf.relay.peers import decode, encode
from flannel_ebpf.relay.spec import RelaySpec

log = logging.getLogger(__name__)

Done = Literal["running", "adopted", "started", "restarted", "replaced"]
"""What `ensure_running` did: nothing, found a predecessor's, made the first, made one after a crash, or
made one because its settings differ from the running one's."""

_STAMP = re.compile(r"[\d-]+ [\d:,]+ [A-Z]+ ")
"""What the relay's log puts before a message."""

_START_SECONDS = 10.0
_STOP_SECONDS = 3.0
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""struct flock of fcntl(2)."""


class Relay:
    """One relay. When it ends unasked, a thread calls `on_exit` with one line for the log."""

    def __init__(self, spec: RelaySpec, on_exit: Callable[[str], None] | None = None) -> None:
        self.spec = spec
        self._on_exit = on_exit
        self._known = 0
        self._stopping = False
        self._told: tuple[os.stat_result, dict[IPv4Network, IPv4Address]] | None = None
        with edge(f"relay's folder {spec.folder}"):
            spec.folder.mkdir(parents=True, exist_ok=True)

    def running(self) -> list[str]:
        """Return the command line of the relay that runs, empty when none does. Raises KernelError."""
        pid = self.pid()
        command = self._running_command() if pid else []
        if command == self.spec.command() and pid != self._known:
            log.info("relay on %s:%d adopted", self.spec.bind, self.spec.port)
            self._watch(pid)
        return command

    def ensure_running(self) -> Done:
        """See to it that a relay with our settings runs; return what was done.

        Without a peers file it starts with no peers. Raises KernelError with the relay's own last words when
        it does not come up.
        """
        lock = self._try_lock()
        if lock is None:
            pid = self._wait_ready(None)
            if self._running_command() == self.spec.command():
                done: Done = "running" if pid == self._known else "adopted"
                self._watch(pid)
                return done
            self.stop()
            lock = self._try_lock()
            if lock is None:
                raise KernelError(f"relay {pid} does not give up {self._path('lock')}")
            done = "replaced"
        else:
            crashed = self._known or counters.read(self._path("counters"))[0]
            done = "restarted" if crashed else "started"
        try:
            self._watch(self._start(lock))
        finally:
            os.close(lock)
        return done

    def peers(self) -> dict[Network, Address]:
        """Return the relay's table as its file has it, empty when the file is missing or broken."""
        path = self._path("peers.json")
        try:
            now = path.stat()
            if self._told is None or _stamp(now) != _stamp(self._told[0]):
                self._told = now, decode(read_small(path), str(path))
        except (OSError, UnicodeDecodeError, ConfigError):
            return {}
        return dict(self._told[1].items())

    def update_peers(self, peers: Mapping[Network, Address]) -> bool:
        """Make `peers` (remote subnet -> public address) the relay's table; False when it already was."""
        if peers and peers == self.peers():
            return False
        path = self._path("peers.json")
        with edge(f"relay's peers {path}"):
            replace_file(path, encode(peers))
        self._signal(signal.SIGHUP)
        return True

    def status(self) -> dict[str, int]:
        """Return the counters by name (relay.counters.NAMES); they start from zero with every process."""
        return counters.read(self._path("counters"))[1]

    def pid(self) -> int:
        """Return the process id of the running relay, 0 when none runs."""
        lock = self._open_lock()
        try:
            held_by = fcntl.fcntl(lock, fcntl.F_OFD_GETLK, _WHOLE_FILE)
        finally:
            os.close(lock)
        if struct.unpack_from("h", held_by)[0] == fcntl.F_UNLCK:
            return 0
        return counters.read(self._path("counters"))[0]

    def stop(self) -> bool:
        """End the relay, by force after a while; False when none ran. The TUN device stays."""
        self._stopping = True
        self._known = 0
        ran = self._signal(signal.SIGTERM)
        if ran and not self._wait_gone():
            self._signal(signal.SIGKILL)
            self._wait_gone()
        self._path("counters").unlink(missing_ok=True)
        return ran

    def forget(self) -> None:
        """Say nothing of this relay's end any more: another one takes its place."""
        self._stopping = True

    def _path(self, name: str) -> Path:
        return self.spec.folder / name

    def _try_lock(self) -> int | None:
        """Return the lock's descriptor, or None while a relay holds it."""
        lock = self._open_lock()
        try:
            fcntl.fcntl(lock, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except (BlockingIOError, PermissionError):
            os.close(lock)
            return None
        return lock

    def _open_lock(self) -> int:
        path = self._path("lock")
        with edge(f"relay's lock {path}"):
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _running_command(self) -> list[str]:
        """Return what the lock's holder has written there, empty while it has not."""
        try:
            found = json.loads(read_small(self._path("lock")))
        except (OSError, ValueError):
            return []
        return [str(word) for word in found] if isinstance(found, list) else []

    def _start(self, lock: int) -> int:
        """Start the relay, detached and with `lock` as its own; return its pid when it is ready."""
        command = self.spec.command()
        with edge("starting the relay"):
            if not self._path("peers.json").exists():
                self._path("peers.json").write_text(encode({}))
            self._path("counters").unlink(missing_ok=True)
            os.ftruncate(lock, 0)
            os.pwrite(lock, json.dumps(command).encode(), 0)
            with self._path("log").open("wb") as output:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    pass_fds=[lock],
                    start_new_session=True,
                )
        threading.Thread(target=process.wait, name="relay-reaper", daemon=True).start()
        return self._wait_ready(process)

    def _wait_ready(self, process: subprocess.Popen[bytes] | None) -> int:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline:
            pid, _ = counters.read(self._path("counters"))
            if pid and (process is None or pid == process.pid):
                return pid
            if process is not None and process.poll() is not None:
                break
            time.sleep(0.01)
        raise KernelError(f"the relay did not start: {self._last_words()}")

    def _last_words(self) -> str:
        with contextlib.suppress(OSError):
            lines = self._path("log").read_text(errors="replace").split("\n")
            words = next((line for line in reversed(lines) if line), "it said nothing")
            return _STAMP.sub("", words)  # else each try would be another problem for the log
        return "it left no log"

    def _signal(self, number: signal.Signals) -> bool:
        """Signal the running relay; False when none runs. The lock, checked last, rules out a reused pid."""
        pid, _ = counters.read(self._path("counters"))
        if not pid:
            return False
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            return False
        try:
            if self.pid() != pid:
                return False
            signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(handle)
        return True

    def _wait_gone(self) -> bool:
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline:
            if not self.pid():
                return True
            time.sleep(0.01)
        return False

    def _watch(self, pid: int) -> None:
        """Have `on_exit` called when `pid` ends."""
        if pid == self._known:
            return
        self._known = pid
        self._stopping = False
        threading.Thread(target=self._wait_exit, args=(pid,), name="relay-watch", daemon=True).start()

    def _wait_exit(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)
            try:
                select.select([handle], [], [])
            finally:
                os.close(handle)
            self._wait_gone()  # its workers share the lock, and end a moment later
        if self._on_exit and self._known == pid and not self._stopping:
            self._on_exit(f"relay {pid} ended: {self._last_words()}")


def _stamp(found: os.stat_result) -> tuple[int, int]:
    """Return what changes with every replacement of a file."""
    return found.st_ino, found.st_mtime_ns


def remove(folder: Path, tun_name: str) -> bool:
    """End the relay of this run-time folder, whatever its settings, and delete its TUN device and files.

    Returns false when nothing of it was there. Raises KernelError.
    """
    found = folder.is_dir()
    if found:
        nowhere = IPv4Address(0)
        Relay(RelaySpec(folder, tun_name, nowhere, 0, 0, nowhere, IPv4Network(0))).stop()
        shutil.rmtree(folder, ignore_errors=True)
    return tun.delete(tun_name) or found
