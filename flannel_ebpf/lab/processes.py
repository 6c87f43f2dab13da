"""Processes that outlive the command which started them: known by pid and start time, ended by pid."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab import netns

_spawned: set[int] = set()
"""Children of this process that `spawn` made: ours to reap. Others belong to their subprocess.Popen."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process; `started` is its start in clock ticks after boot, so that a reused pid is not it."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """Return the running process with this pid, None when there is none or it is a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # proc(5): the second field is the name in brackets, and may hold blanks and brackets itself.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def load(cls, pidfile: Path) -> Process | None:
        """Return the process that `spawn` noted in `pidfile`, None when it never started or has ended."""
        try:
            pid, started = pidfile.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        process = cls(int(pid), int(started))
        return process if process.alive else None

    @property
    def alive(self) -> bool:
        """Whether it still runs. One that `spawn` made here and that has ended is reaped on the way."""
        if self.pid in _spawned and os.waitpid(self.pid, os.WNOHANG)[0] == self.pid:
            _spawned.discard(self.pid)
        return Process.of(self.pid) == self

    def signal(self, number: int) -> None:
        """Send a signal; no effect when it has ended."""
        with suppress(ProcessLookupError):
            handle = os.pidfd_open(self.pid)
            try:
                # The handle stays with one process; only now does the start time prove that it is ours.
                if Process.of(self.pid) == self:
                    signal.pidfd_send_signal(handle, number)
            finally:
                os.close(handle)

    def wait(self, seconds: float) -> bool:
        """Wait until it has ended; return false when it still runs after `seconds`."""
        deadline = time.monotonic() + seconds
        while self.alive:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True


def spawn(ns: str, command: Sequence[str], *, log: Path, pidfile: Path) -> Process:
    """Start `command` in namespace `ns`, in its own session, output appended to `log`; note it in `pidfile`.

    Raises LabError when it cannot be started at all.
    """
    line = netns.inside(ns, command)
    output = (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        pid = os.posix_spawnp(
            line[0],
            line,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                output,
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
        )
    except OSError as error:
        raise LabError(f"cannot start {line[0]}: {error.strerror}") from error
    _spawned.add(pid)
    netns.wait_inside(ns, pid)
    process = Process.of(pid)
    if process is None:
        raise LabError(f"{command[0]} ended at once: {tail(log)}")
    pidfile.write_text(f"{process.pid} {process.started}\n")
    return process


def end(processes: Sequence[Process], grace: float = 5.0) -> None:
    """Ask all `processes` to stop, wait up to `grace` seconds in all, then kill what is left."""
    for process in processes:
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGCONT)
    deadline = time.monotonic() + grace
    for process in processes:
        if not process.wait(max(0.0, deadline - time.monotonic())):
            process.signal(signal.SIGKILL)
            process.wait(grace)


def tail(log: Path, lines: int = 15) -> str:
    """Return the last lines of a log, each indented, for use in an error text."""
    text = log.read_text(errors="replace").splitlines()[-lines:] if log.exists() else []
    return "\n".join(f"    {line}" for line in text) or "    (its log is empty)"
