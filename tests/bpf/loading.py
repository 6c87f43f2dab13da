"""A small object in place of the real ones, and what of it the kernel holds."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.kernel.programs import libbpf, loader, pins
from flannel_ebpf.kernel.programs.loader import LoadRequest

FIXTURES = Path(__file__).parent / "fixtures"
HEADERS = Path(__file__).parents[2] / "bpf"
PREPARE = libbpf._prepare
STRICT_ALIGNMENT = 1
FRAME = bytes(12) + b"\x08\x00" + bytes(46)


def build(target: Path, *defines: str, headers: Path = HEADERS, debug: bool = True) -> None:
    """Compile the small object."""
    multiarch = f"/usr/include/{os.uname().machine}-linux-gnu"
    flags = ["-O2", *(["-g"] if debug else []), "-target", "bpf", f"-I{headers}", f"-I{multiarch}"]
    source = str(FIXTURES / "small.bpf.c")
    subprocess.run(
        ["clang", *flags, *(f"-D{name}" for name in defines), "-c", source, "-o", str(target)], check=True
    )


def use(request: LoadRequest, built: Path, variant: str, name: str = "datapath.bpf.o") -> None:
    """Put a variant of the small object where the loader will take it from."""
    shutil.copy(built / variant, request.objects / name)


def run_here(jobs: Mapping[pins.Kind, libbpf.Job]) -> dict[pins.Kind, BpfError]:
    """Do here what the loader starts a process for: that takes ten seconds where CPUs are emulated."""
    answers = {kind: loader._attempt(job) for kind, job in jobs.items()}
    return {kind: loader._failure(answer) for kind, answer in answers.items() if answer}


def prepare_strictly(library: Any, handle: int, job: libbpf.Job) -> None:
    """Prepare an object so that the verifier demands aligned access to packets (BPF_F_STRICT_ALIGNMENT)."""
    PREPARE(library, handle, job)
    program = library.bpf_object__next_program(ctypes.c_void_p(handle), None)
    while program:
        assert not library.bpf_program__set_flags(ctypes.c_void_p(program), STRICT_ALIGNMENT)
        program = library.bpf_object__next_program(ctypes.c_void_p(handle), ctypes.c_void_p(program))


def pinned_ids(maps: Path) -> set[int]:
    return {info.id for info in pins.maps(maps).values()}


def maps_of(programs: Path) -> set[int]:
    """Return the ids of the maps that the programs pinned in a folder use."""
    return {map_id for info in pins.programs(programs).values() for map_id in info.map_ids}
