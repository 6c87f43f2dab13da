"""A host with systemd of its own as process 1, in namespaces: what the lab's nodes have not.

Its root is a Debian made by tools/packages/root.sh, under an overlay that goes away with it; its network is
that of a namespace which exists, such as a node's of the lab.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from flannel_ebpf.lab.command import run
from tests.polls import eventually

TOP = Path(__file__).parents[2]
PLACE = Path("/run/flannel-ebpf-hosts")
PATH = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"

# Process 1's view: own mounts, pids, names, cgroups; the network is entered before. cgroup2 alone, because
# that is what today's systemd wants, wherever the machine has mounted it.
_INNER = f"""
set -e
root=$1
mount --make-rprivate /
mount -t proc proc $root/proc
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t bpf bpf $root/sys/fs/bpf
mount -t tmpfs -o mode=755 tmpfs $root/dev
for node in null zero full random urandom tty; do
    touch $root/dev/$node
    mount --bind /dev/$node $root/dev/$node
done
mkdir -p $root/dev/net $root/dev/pts $root/dev/shm
touch $root/dev/net/tun
mount --bind /dev/net/tun $root/dev/net/tun
mount -t devpts devpts -o newinstance,ptmxmode=0666 $root/dev/pts
ln -s pts/ptmx $root/dev/ptmx
mount -t tmpfs -o mode=755 tmpfs $root/run
cd $root
mkdir -p .before
pivot_root . .before
umount -l /.before
exec env -i container=lab {PATH} /sbin/init < /dev/null
"""


def debian(name: str, release: str, *packages: str) -> Path:
    """Return a root of this release with these packages, made if it is not there yet."""
    subprocess.run([TOP / "tools/packages/root.sh", name, release, *packages], check=True)
    return TOP / "build/roots" / name


class Machine:
    """One booted host. As a context manager it is gone at the end of the block."""

    def __init__(self, name: str, root: Path, ns: str) -> None:
        self.name = name
        self.ns = ns
        self._base = root
        self._folder = PLACE / name
        self.root = self._folder / "root"
        self._cgroup = _cgroup2() / f"flannel-ebpf-{name}"
        self._unshare: subprocess.Popen[bytes] | None = None
        self._init = 0

    def __enter__(self) -> Self:
        for folder in (self._folder / "upper", self._folder / "work", self.root, self._cgroup):
            folder.mkdir(parents=True, exist_ok=True)
        upper, work = self._folder / "upper", self._folder / "work"
        layers = f"lowerdir={self._base},upperdir={upper},workdir={work}"
        try:
            run(["mount", "-t", "overlay", "overlay", "-o", layers, str(self.root)])
            (self.root / "etc/hostname").write_text(f"{self.name}\n")
            (self.root / "etc/machine-id").write_text("")
            (self.root / "usr/sbin/policy-rc.d").unlink(missing_ok=True)  # here packages may start services
            self.boot()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def boot(self) -> None:
        """Start systemd and wait until it has started everything."""
        enter = f"echo $$ > {self._cgroup}/cgroup.procs; exec nsenter --net=/run/netns/{self.ns} "
        enter += "unshare --mount --uts --ipc --cgroup --pid --fork --kill-child "
        with (self._folder / "console").open("ab") as console:
            self._unshare = subprocess.Popen(
                ["sh", "-c", enter + 'bash -c "$0" inner "$1"', _INNER, str(self.root)],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        self._init = eventually(self._find_init, f"{self.name} has a process 1", 20)
        states = {"running", "degraded"}
        eventually(lambda: self.state() in states, lambda: f"{self.name} is up; {self.console()}", 60)

    def console(self) -> str:
        """Return the end of what booting wrote."""
        return (self._folder / "console").read_text(errors="replace")[-2000:]

    def state(self) -> str:
        """Return what `systemctl is-system-running` says."""
        return self.run("systemctl", "is-system-running", check=False).stdout.strip()

    def command(self, *command: str) -> list[str]:
        """Return the command line that runs `command` in this host."""
        inside = ["nsenter", f"--target={self._init}", "--all", "--root"]
        return [
            *inside,
            "env",
            "--ignore-environment",
            "--chdir=/",
            PATH,
            "HOME=/root",
            "DEBIAN_FRONTEND=noninteractive",
            *command,
        ]

    def run(
        self, *command: str, check: bool = True, timeout: float = 300.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; raises LabError as the lab's hosts do."""
        return run(self.command(*command), check=check, timeout=timeout)

    def sh(self, script: str, *, check: bool = True) -> str:
        """Run a shell script here and return what it printed."""
        return self.run("sh", "-ec", script, check=check).stdout.strip()

    def copy(self, source: Path, target: str) -> None:
        """Copy a file into this host."""
        text = source.read_bytes()
        put = subprocess.run(self.command("sh", "-c", 'cat > "$0"', target), input=text, check=False)
        assert put.returncode == 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unshare:
            if self._init:
                os.kill(self._init, signal.SIGKILL)  # and with it everything in its pid namespace
            self._unshare.kill()
            self._unshare.wait()
        run(["umount", "--lazy", str(self.root)], check=False)
        eventually(self._remove_cgroup, f"the cgroup of {self.name} is empty")
        shutil.rmtree(self._folder, ignore_errors=True)

    def _remove_cgroup(self) -> bool:
        for folder, _, _ in os.walk(self._cgroup, topdown=False):
            try:
                Path(folder).rmdir()
            except OSError:
                return False
        return True

    def _find_init(self) -> int:
        """Return process 1 of the namespace, in this one's numbers, once it is systemd."""
        assert self._unshare
        assert self._unshare.poll() is None, self.console()
        for child in Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().strip() in ("systemd", "init"):
                return int(child)
        return 0


def _cgroup2() -> Path:
    """Return where cgroup2 is mounted here."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise AssertionError("no cgroup2 is mounted: systemd needs one")
