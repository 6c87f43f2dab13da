"""What tests compile: the programs as tests have them, and every variant of the small object.

`python -m tests.bpf.compiled FOLDER` does so for `pytest --compiled=FOLDER`, elsewhere than where that runs.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.bpf.loading import HEADERS, build

PROGRAMS, SMALL = "programs", "small"
EPOCH_SHIFT = 36
"""An epoch of the sketch is 69 s here, so that a busy machine's tests see no flow grow young."""


def compile_programs(folder: Path, *, strictly: bool = False) -> None:
    """Compile the programs with tickets in the packet mark: a test run can neither set nor show tc_index.

    They also have a minute for what takes microseconds between the kernel's ends. `strictly`: for hosts that
    demand aligned access.
    """
    defines = f"-DFL_TICKET=mark -DFL_LESSON_TIME=60000 -DFL_EPOCH_SHIFT={EPOCH_SHIFT}"
    if strictly:
        defines += " -DFL_STRICT_ALIGN"
    make = ["make", "--silent", f"--directory={HEADERS}", f"OUT={folder}", f"DEFINES={defines}"]
    subprocess.run(make, check=True)


def compile_small(folder: Path) -> None:
    """Compile the small object, whole and broken."""
    build(folder / "good")
    build(folder / "broken", "BROKEN")
    build(folder / "xdp", "XDP")
    build(folder / "xdp-broken", "XDP", "BROKEN")
    build(folder / "no-btf", debug=False)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    (target / SMALL).mkdir(parents=True, exist_ok=True)
    compile_programs(target / PROGRAMS)
    compile_small(target / SMALL)
