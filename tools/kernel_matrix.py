#!/usr/bin/env python3
"""Run flannel-ebpf on Debian's stock kernels, in virtual machines over this machine's file system.

`kernel_matrix.py [bullseye|bookworm|trixie|newest|arm64]...`; without a name all but arm64, one by one.
Needs no KVM. The guests see this machine's root read-only (arm64: a root of its own); what they write stays
in their memory. Each kernel is fetched once (tools/kernels/fetch.sh), and what its guest says lies beside it
in `log`.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from shutil import which

CHECKOUT = Path(__file__).resolve().parents[1]
KERNELS = ("bullseye", "bookworm", "trixie", "newest")
ARM = "arm64"
ARM_STAGES = ("features", "objects", "nodes")
STAGES = ("features", "objects", "nodes", "devices", "rights", "bpf")
COMPILERS = ("clang-14", "clang-16", "clang-19")
CACHE = Path(os.environ.get("FLANNEL_KERNELS", Path.home() / ".cache/flannel-ebpf/kernels"))
SNAPSHOT = CACHE / "checkout"
OBJECTS = CACHE / "objects"
MEMORY = "3G"
_PROGRESS = re.compile(r"\[ *(\d+)%\]")
_RESULT = re.compile(r"kernels: result: (\w+): (\d+): (.*)")


@dataclass(frozen=True)
class Machine:
    """How a guest is started: QEMU's command, its console, and the host's folder that becomes its root."""

    qemu: tuple[str, ...]
    console: str
    root: Path


AMD64 = Machine(("qemu-system-x86_64", "-machine", "q35,accel=tcg", "-cpu", "max"), "ttyS0", Path("/"))
ARM64 = Machine(
    ("qemu-system-aarch64", "-machine", "virt,accel=tcg", "-cpu", "max,pauth-impdef=on"),
    "ttyAMA0",
    CACHE / "arm64-root",
)


@dataclass
class Run:
    """What one kernel's guest said: result of each stage, and how it ended."""

    name: str
    release: str = ""
    results: dict[str, tuple[bool, str]] = field(default_factory=dict)
    end: str = ""
    seconds: float = 0.0
    stage: str = ""

    @property
    def passed(self) -> bool:
        """Whether every stage has run and passed."""
        return self.end == "passed"


class Matrix:
    """Boots kernels one after the other or side by side, and says what happens.

    One after the other with all CPUs is faster: two with a core each took 31 minutes, one with both 12.
    """

    def __init__(self, stages: Sequence[str], command: str, limit: float, cpus: int) -> None:
        self._stages, self._command, self._limit, self._cpus = stages, command, limit, cpus
        self._begun = time.monotonic()

    def say(self, name: str, text: str) -> None:
        """Print a line of progress."""
        print(f"kernels: {time.monotonic() - self._begun:5.0f} s  {name}: {text}", flush=True)

    def run(self, name: str) -> Run:
        """Fetch and boot one kernel, run its stages, return what came of them."""
        run = Run(name)
        begun = time.monotonic()
        try:
            self.say(name, "fetching")
            stages = [stage for stage in self._stages if name != ARM or stage in ARM_STAGES]
            folder = fetch_arm64() if name == ARM else fetch(name)
            settings = {"STAGES": " ".join(stages), "JOBS": self._cpus}
            settings |= {"LIMIT": int(self._limit), "RUN": self._command}
            lines = (f"{key}={shlex.quote(str(value))}\n" for key, value in settings.items())
            (folder / "settings").write_text("".join(lines))
            guest = arm64_guest(folder) if name == ARM else Guest(AMD64, folder, folder, CHECKOUT, SNAPSHOT)
            self._follow(run, guest, begun + self._limit)
        except subprocess.CalledProcessError as error:
            run.end = f"{Path(error.cmd[0]).name}: {(error.stderr or '').strip()[-300:]}"
        run.seconds = time.monotonic() - begun
        self.say(name, f"{run.end}, {run.seconds:.0f} s")
        return run

    def _follow(self, run: Run, guest: Guest, deadline: float) -> None:
        run.end = "the guest ended by itself"
        with (guest.folder / "log").open("w") as log:
            for line in boot(guest, self._cpus, deadline):
                log.write(line)
                log.flush()
                self._hear(run, line.strip())
        if not run.passed and time.monotonic() > deadline:
            run.end = f"not ended after {self._limit:.0f} s, in {run.stage or 'booting'}"

    def _hear(self, run: Run, line: str) -> None:
        if found := _RESULT.search(line):
            run.results[found[1]] = found[2] == "0", found[3]
            self.say(run.name, f"{found[1]}: {found[3]}")
            if found[2] != "0":
                run.end = "failed"
        elif "kernels: " in line:
            text = line.partition("kernels: ")[2]
            if text.startswith("booted "):
                run.release = text.split()[1]
            elif text.endswith(" begins"):
                run.stage = text.removesuffix(" begins")
            elif text == "passed":
                run.end = "passed"
            self.say(run.name, text)
        elif line.startswith(("FAILED ", "ERROR ")) or run.stage == "run":
            self.say(run.name, line)
        elif found := _PROGRESS.search(line):
            self.say(run.name, f"{run.stage} {found[1]} %")


def snapshot(folder: Path) -> None:
    """Copy what the guests run, with Python's caches: somebody may work in the checkout meanwhile."""
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    folder.mkdir(parents=True)
    (folder / ".venv").mkdir()
    parts = [
        str(CHECKOUT / part) for part in ("bpf", "docs", "flannel_ebpf", "pyproject.toml", "tests", "tools")
    ]
    subprocess.run(["cp", "-a", *parts, str(folder)], check=True)


def fetch(name: str, architecture: str = "amd64") -> Path:
    """Return the folder of an unpacked kernel. Raises CalledProcessError."""
    command = [str(CHECKOUT / "tools/kernels/fetch.sh"), name, architecture]
    environment = os.environ | ({"BUSYBOX": str(ARM64.root / "bin/busybox")} if architecture == ARM else {})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return Path(done.stdout.strip())


def fetch_arm64() -> Path:
    """Return the folder of bookworm's arm64 kernel, beside a root with arm64 programs."""
    command = [str(CHECKOUT / "tools/kernels/arm64_root.sh"), str(ARM64.root)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return fetch("bookworm", "arm64")


def compile_objects(folder: Path) -> None:
    """Compile the programs with each compiler. Raises CalledProcessError."""
    for compiler in COMPILERS:
        command = [
            "make",
            "--silent",
            "-C",
            str(CHECKOUT / "bpf"),
            f"CLANG={compiler}",
            f"OUT={folder / compiler}",
        ]
        subprocess.run(command, check=True, capture_output=True, text=True)


def compile_for_tests(folder: Path) -> None:
    """Compile what tests/bpf would else compile in the guest, for minutes. Raises CalledProcessError."""
    command = [sys.executable, "-m", "tests.bpf.compiled", str(folder)]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=CHECKOUT)


@dataclass(frozen=True)
class Guest:
    """One guest: kernel and log on the host, and where it finds kernel, checkout and snapshot itself."""

    machine: Machine
    folder: Path
    kernel: Path
    checkout: Path
    snapshot: Path


def arm64_guest(folder: Path) -> Guest:
    """Copy into the arm64 root what its guest needs. Raises CalledProcessError."""
    copies = {
        "checkout": SNAPSHOT,
        "kernels/objects": OBJECTS,
        "kernels/arm64/lib": folder / "lib",
        "kernels/arm64/settings": folder / "settings",
    }
    for place, source in copies.items():
        target = ARM64.root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["rm", "-rf", str(target)], check=True)
        subprocess.run(["cp", "-a", "--link", str(source), str(target)], check=True)
    python = ARM64.root / "checkout/.venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/python3")
    kernel, checkout = Path("/kernels/arm64"), Path("/checkout")
    return Guest(ARM64, folder, kernel, checkout, checkout)


def boot(guest: Guest, cpus: int, deadline: float) -> Iterator[str]:
    """Boot a kernel and yield what it prints; it is ended at `deadline` (monotonic seconds)."""
    words = f"console={guest.machine.console} quiet panic=-1 mitigations=off checkout={guest.checkout} "
    words += f"snapshot={guest.snapshot} kernel={guest.kernel}"
    share = f"local,id=host,path={guest.machine.root},security_model=none,readonly=on,multidevs=remap"
    command = [
        *guest.machine.qemu,
        *("-smp", str(cpus), "-m", MEMORY, "-nodefaults", "-nographic", "-no-reboot", "-serial", "stdio"),
        *("-kernel", str(guest.folder / "vmlinuz"), "-initrd", str(guest.folder / "initramfs")),
        *("-append", words, "-fsdev", share, "-device", "virtio-9p-pci,fsdev=host,mount_tag=host"),
    ]
    left = max(1.0, deadline - time.monotonic())
    with subprocess.Popen(
        ["setpriv", "--pdeathsig", "TERM", "timeout", "--kill-after=5", f"{left:.0f}", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout  # noqa: S101 - for the type checker: it is a pipe
        try:
            yield from process.stdout
        finally:
            process.terminate()


def table(runs: Sequence[Run], stages: Sequence[str]) -> str:
    """Return the results as a table in Markdown."""
    rows = [["kernel", *stages, "seconds"], ["---"] * (len(stages) + 2)]
    for run in runs:
        cells = [run.results.get(stage, (False, "-"))[1] for stage in stages]
        rows.append([f"{run.release or '?'} ({run.name})", *cells, f"{run.seconds:.0f}: {run.end}"])
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def prepare(*, arm: bool) -> None:
    """Install what is missing of the packages that only this needs; exit when that cannot be."""
    wanted = [
        "qemu-system-x86",
        *(["qemu-system-arm"] if arm else []),
        "kmod",
        "busybox-static",
        "cpio",
        "lz4",
        "xz-utils",
        *COMPILERS[1:],
    ]
    subprocess.run([str(CHECKOUT / "tools/setup_packages.sh"), *wanted], check=True)
    for command in ("busybox", *COMPILERS):
        if not which(command):
            sys.exit(f"kernels: {command} is missing, although its package is installed")


def main() -> int:
    """Run the matrix; return how many kernels failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", nargs="*", metavar="|".join((*KERNELS, ARM)))
    parser.add_argument("--stages", default=" ".join(STAGES), help="of: %(default)s")
    parser.add_argument("--run", default="", metavar="COMMAND", help="run this in the guest instead")
    parser.add_argument("--minutes", type=float, default=45, help="a guest's limit (default %(default)s)")
    parser.add_argument(
        "--at-once", type=int, default=1, help="guests that share the CPUs (default %(default)s)"
    )
    arguments = parser.parse_args()
    names = arguments.kernels or list(KERNELS)
    if unknown := set(names) - {*KERNELS, ARM}:
        parser.error(f"no such kernel: {', '.join(sorted(unknown))}; one of {', '.join(KERNELS)}, {ARM}")
    if os.geteuid() != 0:
        sys.exit("kernels: run it as root")
    if CHECKOUT.is_relative_to("/tmp") or CHECKOUT.is_relative_to("/run"):  # noqa: S108 - the guest's own
        sys.exit(f"kernels: the checkout {CHECKOUT} lies where the guest has folders of its own: move it")
    prepare(arm=ARM in names)
    snapshot(SNAPSHOT)
    if "objects" in arguments.stages:
        compile_objects(OBJECTS)
    if {"objects", "bpf"} & {*arguments.stages.split()} or arguments.run:
        compile_for_tests(OBJECTS / "tests")
    stages = ["run"] if arguments.run else arguments.stages.split()
    at_once = min(arguments.at_once, len(names))
    matrix = Matrix(stages, arguments.run, arguments.minutes * 60, max(1, (os.cpu_count() or 1) // at_once))
    with ThreadPoolExecutor(at_once) as pool:
        runs = list(pool.map(matrix.run, names))
    print(table(runs, stages))
    return sum(not run.passed for run in runs)


if __name__ == "__main__":
    sys.exit(main())
