"""The relay as the daemon sees it: a process that is started, adopted, told its peers, and stopped.

The relay holds an inherited file lock, so "it runs" is a fact of the kernel and not of a pid file; a
daemon that starts anew finds the relay of its predecessor and leaves it running. The lock is of the "open
file description" kind: it passes to a child, and asking about it does not take it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.options import SourceCheckChoice
from flannel_ebpf.kernel.netlink import tun
from flannel_ebpf.relay import counters
from flannel_ebpf.relay.peers import encode

Done = Literal["running", "adopted", "started", "restarted", "replaced"]
"""What `ensure_running` did: nothing, found a predecessor's, made the first, made one after a crash, or
made one because its settings differ from the running one's."""

_START_SECONDS = 10.0
_STOP_SECONDS = 3.0
_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""struct flock of fcntl(2)."""


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """The relay's settings; a change of any needs a new process, peers do not.

    `folder` is its run-time folder (peers, counters, lock, log). `mtu` is the TUN's: the uplink's less 28.
    `batch` off keeps GRO from merging datagrams on a node whose BPF programs carry them.
    """

    folder: Path
    tun: str
    bind: IPv4Address
    port: int
    mtu: int
    address: IPv4Address
    network: IPv4Network
    source_check: SourceCheckChoice = "drop"
    batch: bool = True
    queues: int = 1

    def command(self) -> list[str]:
        """Return the command line."""
        words = {
            "tun": self.tun,
            "bind": self.bind,
            "port": self.port,
            "mtu": self.mtu,
            "address": self.address,
            "network": self.network,
            "source-check": self.source_check,
            "batch": "on" if self.batch else "off",
            "queues": self.queues,
            "peers": self.folder / "peers.json",
            "status": self.folder / "counters",
        }
        flags = [text for name, value in words.items() for text in (f"--{name}", str(value))]
        return [sys.executable, "-m", "flannel_ebpf.relay", *flags]


class Relay:
    """One relay. When it ends unasked, a thread calls `on_exit` with one line for the log."""

    def __init__(self, spec: RelaySpec, on_exit: Callable[[str], None] | None = None) -> None:
        self._spec = spec
        self._on_exit = on_exit
        self._known = 0
        self._stopping = False
        spec.folder.mkdir(parents=True, exist_ok=True)

    def ensure_running(self) -> Done:
        """See to it that a relay with our settings runs; return what was done.

        Without a peers file it starts with no peers. A running relay's TUN is put right if somebody
        took it down or its address or route away. Raises KernelError with the relay's own last words when
        it does not come up.
        """
        lock = self._try_lock()
        if lock is None:
            pid = self._wait_ready(None)
            if self._running_command() == self._spec.command():
                done: Done = "running" if pid == self._known else "adopted"
                self._watch(pid)
                tun.configure(self._spec.tun, self._spec.mtu, self._spec.address, self._spec.network)
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

    def update_peers(self, peers: Mapping[IPv4Network, IPv4Address]) -> bool:
        """Make `peers` (remote subnet -> public address) the relay's table; False when it already was."""
        text = encode(peers)
        path = self._path("peers.json")
        with contextlib.suppress(OSError):
            if path.read_text() == text:
                return False
        new = path.with_name("peers.json.new")
        try:
            new.write_text(text)
            new.rename(path)
        except OSError as error:
            raise KernelError(f"relay's peers {path}: {error.strerror}", error.errno or 0) from error
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

    def _path(self, name: str) -> Path:
        return self._spec.folder / name

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
        try:
            return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise KernelError(f"relay's lock {path}: {error.strerror}", error.errno or 0) from error

    def _running_command(self) -> object:
        try:
            return json.loads(self._path("lock").read_text())
        except ValueError:
            return None

    def _start(self, lock: int) -> int:
        """Start the relay, detached and with `lock` as its own; return its pid when it is ready."""
        peers = self._path("peers.json")
        if not peers.exists():
            peers.write_text(encode({}))
        self._path("counters").unlink(missing_ok=True)
        command = self._spec.command()
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
            return next((line for line in reversed(lines) if line), "it said nothing")
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
