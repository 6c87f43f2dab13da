"""What pyproject.toml cannot say: a built package carries the compiled BPF programs and its commit."""

from __future__ import annotations

import subprocess
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
PROGRAMS = Path("flannel_ebpf/_programs")


class BuildWithPrograms(build_py):
    """Compiles the programs first, so that no wheel can be without them."""

    def run(self) -> None:
        """Compile, then do what setuptools does; `make setup` compiles for a checkout."""
        if not self.editable_mode:
            _compile()
            (ROOT / PROGRAMS / "commit").write_text(_commit())
        super().run()


def _compile() -> None:
    try:
        subprocess.run(["make", "--no-print-directory", "-C", ROOT / "bpf"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"flannel-ebpf: the BPF programs cannot be compiled ({error}); that takes "
            "`apt-get install clang llvm libbpf-dev linux-libc-dev make`"
        ) from error


def _commit() -> str:
    """Return the commit that is built, with + for a tree that has changes; "" outside a repository."""
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        known = ROOT / PROGRAMS / "commit"
        return known.read_text() if known.exists() else ""


setup(cmdclass={"build_py": BuildWithPrograms})
