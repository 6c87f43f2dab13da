"""Loading one compiled object with libbpf, as the bcc package's binding exposes it.

Importing the binding maps LLVM (72 MB resident), so only the short-lived loader process does it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import BpfUnavailable, VerifierRejected
from flannel_ebpf.kernel.bpf.syscall import rights
from flannel_ebpf.kernel.programs import pins

_REJECTED = "BEGIN PROG LOAD LOG"  # libbpf prints the verifier's log between such lines
_EXPLANATION = "Verification failed: "  # Linux 7 explains at length, over the source, what it has just said
_LOG_LINES = 25


@dataclass(frozen=True, slots=True)
class Job:
    """One object to load. Paths are text and bytes hexadecimal, because a job travels as JSON.

    `rodata` replaces the initial value of section `rodata_section`. `entries` overrides the size of maps by
    name. `maps` is the folder where maps are found or pinned, `programs` the folder that appears when every
    program is loaded.
    """

    object: str
    rodata_section: str
    rodata: str
    entries: dict[str, int]
    maps: str
    programs: str


def load(job: Job) -> None:
    """Load and pin everything of one object; maps already pinned in the folder are used as they are.

    Raises VerifierRejected or BpfUnavailable; then nothing of this job stays behind except maps that were
    there before.
    """
    library = _library()
    handle = _require(library.bpf_object__open_file(job.object.encode(), None), f"open {job.object}")
    try:
        _prepare(library, handle, job)
        with _printed_by_libbpf() as printed:
            result = library.bpf_object__load(ctypes.c_void_p(handle))
            output = printed()
        if result:
            raise _refusal(job.object, -result, output)
        _pin_programs(library, handle, Path(job.programs))
    finally:
        library.bpf_object__close(ctypes.c_void_p(handle))


def _library() -> Any:
    try:
        from bcc.libbcc import lib  # noqa: PLC0415  # 72 MB: only where it is needed
    except (ImportError, OSError) as error:
        raise BpfUnavailable(
            f"libbpf's binding cannot be imported ({error}): install Debian's python3-bpfcc (PyPI's "
            "bcc is another package) and make the virtual environment with --system-site-packages"
        ) from error
    for name in (
        *("bpf_object__open_file", "bpf_object__next_map", "bpf_object__next_program"),
        *("bpf_object__find_map_by_name", "bpf_map__name", "bpf_program__name"),
    ):
        getattr(lib, name).restype = ctypes.c_char_p if name.endswith("__name") else ctypes.c_void_p
    return lib


def _prepare(library: Any, handle: int, job: Job) -> None:
    constants = ctypes.c_void_p(
        library.bpf_object__find_map_by_name(ctypes.c_void_p(handle), job.rodata_section.encode())
    )
    rodata = bytes.fromhex(job.rodata)
    _accept(
        library.bpf_map__set_initial_value(constants, rodata, ctypes.c_size_t(len(rodata))),
        "set the constants",
    )
    folder = Path(job.maps)
    folder.mkdir(parents=True, exist_ok=True)
    for one, name in _each(library.bpf_object__next_map, library.bpf_map__name, handle):
        if library.bpf_map__is_internal(one):
            continue
        if name in job.entries:
            _accept(library.bpf_map__set_max_entries(one, job.entries[name]), f"set the size of {name}")
        _accept(library.bpf_map__set_pin_path(one, str(folder / name).encode()), f"set the pin of {name}")


def _pin_programs(library: Any, handle: int, folder: Path) -> None:
    filling = pins.unfinished(folder)
    pins.remove(filling)
    filling.mkdir()
    for one, name in _each(library.bpf_object__next_program, library.bpf_program__name, handle):
        _accept(library.bpf_program__pin(one, str(filling / name).encode()), f"pin {name}")
    pins.remove(folder)  # there only when its maps were unpinned meanwhile: its programs count in lost maps
    filling.rename(folder)


def _each(following: Any, name: Any, handle: int) -> Iterator[tuple[ctypes.c_void_p, str]]:
    one = following(ctypes.c_void_p(handle), None)
    while one:
        yield ctypes.c_void_p(one), name(ctypes.c_void_p(one)).decode()
        one = following(ctypes.c_void_p(handle), ctypes.c_void_p(one))


@contextmanager
def _printed_by_libbpf() -> Iterator[Callable[[], str]]:
    """Catch what libbpf prints on file descriptor 2, the verifier's log above all."""
    kept, file = os.dup(2), os.memfd_create("libbpf")
    os.dup2(file, 2)
    try:
        yield lambda: os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(file)


def _refusal(path: str, code: int, output: str) -> VerifierRejected | BpfUnavailable:
    lines = output.splitlines()
    if _REJECTED in output:
        start = next(at for at, line in enumerate(lines) if _REJECTED in line)
        end = next((at for at, line in enumerate(lines) if "END PROG LOAD LOG" in line), len(lines))
        program = lines[start - 1] if start else ""
        log = [line for line in lines[start + 1 : end] if line and not line.startswith("processed ")]
        explained = next((at for at, line in enumerate(log) if line.startswith(_EXPLANATION)), len(log))
        log = log[:explained]
        reason = log[-1].strip() if log else os.strerror(code)
        return VerifierRejected(
            f"{path}: {program.removeprefix('libbpf: ')}: {reason}", "\n".join(log[-_LOG_LINES:])
        )
    if code == errno.EPERM:
        return BpfUnavailable(f"{path}: {os.strerror(code)}: {rights()}", code)
    first = next(
        (line.removeprefix("libbpf: ") for line in lines if "fail" in line or "couldn't" in line), ""
    )
    return BpfUnavailable(f"{path}: {os.strerror(code)} ({first or 'libbpf gave no reason'})", code)


def _require(pointer: int | None, what: str) -> int:
    if not pointer:
        raise BpfUnavailable(f"{what}: {os.strerror(ctypes.get_errno())}")
    return pointer


def _accept(result: int, what: str) -> None:
    if result:
        raise BpfUnavailable(f"{what}: {os.strerror(abs(result))}", abs(result))
