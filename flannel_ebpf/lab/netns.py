"""Network namespaces by name, as `ip netns` keeps them."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab.command import run

FOLDER = Path("/run/netns")

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def inside(ns: str, command: Sequence[str]) -> list[str]:
    """Return the command that runs `command` in network namespace `ns`.

    Not `ip netns exec`: that mounts a fresh /sys for the command, which hides every bpffs below it.
    """
    return ["nsenter", f"--net={FOLDER / ns}", "--", *command]


def create(names: Iterable[str]) -> None:
    """Make the namespaces `names`, each with its loopback up. Raises LabError when one exists already."""
    names = list(names)
    run(["ip", "-batch", "-"], stdin="".join(f"netns add {name}\n" for name in names))
    for name in names:
        run(["ip", "-n", name, "link", "set", "lo", "up"])


def trust_addresses(name: str) -> None:
    """Let IPv6 addresses of devices to come in namespace `name` be used at once.

    To look for duplicates first takes a second for each, link-local ones too, and finds nothing in a lab.
    """
    run(inside(name, ["sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0"]))


def configure(ns: str, lines: Iterable[str]) -> None:
    """Run `lines` in `ns` as one `ip -batch`; raises LabError at the first that the kernel refuses."""
    lines = list(lines)
    done = run(["ip", "-n", ns, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines), check=False)
    if done.returncode != 0:
        # ip says "Command failed -:<line>", which nobody can read without the batch.
        number = int(done.stderr.strip().rpartition(":")[2])
        said = done.stderr.partition("\n")[0]
        raise LabError(f"in {ns}, `ip {lines[number - 1]}`: {said}")


def delete(names: Iterable[str]) -> None:
    """Remove the namespaces `names` (links in them go too); one that is not there is fine.

    Unmounts /run/netns when it is left empty, because the first `ip netns add` mounted it.
    """
    for name in names:
        run(["ip", "netns", "delete", name], check=(FOLDER / name).exists())
    if FOLDER.is_dir() and not any(FOLDER.iterdir()):
        run(["umount", str(FOLDER)], check=False)


def names() -> list[str]:
    """Return the names of all namespaces on this machine, sorted."""
    return sorted(path.name for path in FOLDER.iterdir()) if FOLDER.is_dir() else []


def wait_inside(ns: str, pid: int) -> None:
    """Wait until `pid`, started with `inside`, is in `ns` or has ended: until then `pids` would miss it."""
    there = _inode(FOLDER / ns)
    while _inode(Path(f"/proc/{pid}/ns/net")) not in (there, None):
        time.sleep(0.001)


def pids(names: Iterable[str]) -> list[int]:
    """Return the ids of all processes that run in one of the namespaces `names`, this one excepted."""
    inodes = {_inode(FOLDER / name) for name in names} - {None}
    running = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in running if _inode(Path(f"/proc/{pid}/ns/net")) in inodes and pid != os.getpid()]


def call_inside(ns: str, function: Callable[[], T]) -> T:
    """Call `function` in namespace `ns`, in a thread that ends with it; its exceptions come out here."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_enter, ns).result()
        return thread.submit(function).result()


def _enter(ns: str) -> None:
    with (FOLDER / ns).open() as place:
        if _libc.setns(place.fileno(), _CLONE_NEWNET):
            code = ctypes.get_errno()
            raise LabError(f"namespace {ns} cannot be entered: {os.strerror(code)}")


def has_link(ns: str, link: str) -> bool:
    """Whether namespace `ns` has an interface called `link`."""
    return run(["ip", "-n", ns, "link", "show", "dev", link], check=False).returncode == 0


def _inode(path: Path) -> int | None:
    """Return what tells one namespace from another; None when it or the process is gone."""
    try:
        return path.stat().st_ino
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
