"""Remove a lab, whatever is left of it. Judged by names and folders alone, so a half-built one goes too."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Generator
from contextlib import contextmanager, suppress

from flannel_ebpf.lab import netns, processes
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.processes import Process
from flannel_ebpf.lab.spec import ROOT, check_name, folder_of, owns_namespace


def remove(name: str) -> bool:
    """End every process of lab `name`, unmount its bpffs, delete its namespaces and its folder.

    Returns whether there was anything to remove. Every process that runs in one of its namespaces is
    the lab's: nothing else can have entered them.
    """
    check_name(name)
    with _undisturbed():
        return _remove(name)


def _remove(name: str) -> bool:
    folder = folder_of(name)
    owned = [ns for ns in netns.names() if owns_namespace(name, ns)]
    if not owned and not folder.exists():
        return False
    processes.end([process for pid in netns.pids(owned) if (process := Process.of(pid))])
    pins = folder / "bpf"
    while pins.is_mount():
        run(["umount", str(pins)])
    netns.delete(owned)
    shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # other labs' folders may be in it
        ROOT.rmdir()
    return True


@contextmanager
def _undisturbed() -> Generator[None, None, None]:
    """Hold back Ctrl-C and SIGTERM: an impatient second one would leave half a lab behind.

    Commands started meanwhile inherit that. All of them are short.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
