"""Getting the programs into the kernel: nothing when they are there already, else by a short-lived process.

`ensure_loaded` is the daemon's side. `python -m flannel_ebpf.kernel.programs.loader [JOBS.json]` is the
process: it reads a list of jobs (file or standard input), loads each object and prints one line of JSON, a
list with an empty object for each success and {kind, message, log} for each failure.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from flannel_ebpf.base.errors import AbiMismatch, BpfError, BpfUnavailable, VerifierRejected, edge
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.base.options import BPF_PIN_ROOT
from flannel_ebpf.contract import abi, btf, elf, mirror
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.kernel.programs import libbpf, pins

log = logging.getLogger(__name__)

OBJECTS = Path(__file__).parents[2] / "_programs"
_NAMES = {Family.V4: ("datapath.bpf.o", "xdp.bpf.o"), Family.V6: ("datapath6.bpf.o", "xdp6.bpf.o")}
_CONSTANTS = "fl_cfg"
_VARIABLES = (".rodata", ".data", ".bss")
_TIMEOUT_S = 60
_DIGEST_BYTES = 8


@dataclass(frozen=True, slots=True)
class LoadRequest:
    """What should be in the kernel.

    `entries` overrides the size of maps by name. `objects` is the folder of datapath.bpf.o and xdp.bpf.o, and
    of the same of IPv6, which a network of that family takes.
    """

    network: Network
    config: abi.Config
    entries: Mapping[str, int] = field(default_factory=dict)
    xdp: bool = False
    root: Path = BPF_PIN_ROOT
    objects: Path = OBJECTS


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is in the kernel now.

    `maps` is the folder of pinned maps, `folders` those of the programs, `programs` the kernel's id of each
    program by name. `changed` is false when everything was there before. `xdp_error` says why fl_xdp is not
    among the programs although it was asked for.
    """

    maps: Path
    folders: tuple[Path, ...]
    programs: Mapping[str, int]
    changed: bool
    xdp_error: str = ""


class _Object:
    """A compiled object, parsed and compared with the contract."""

    def __init__(self, path: Path, family: Family, *, complete: bool) -> None:
        self.path = path
        try:
            self.image = path.read_bytes()
        except OSError as error:
            raise BpfUnavailable(f"{path}: {error.strerror}; build it with make -C bpf") from error
        self.elf = elf.parse(self.image, str(path))
        if ".BTF" not in self.elf.sections:
            raise BpfUnavailable(f"{path}: no .BTF section; compile it with clang -g")
        self.btf = btf.Btf(self.elf.sections[".BTF"])
        mirror.check(self.btf, family, complete=complete)

    def constants(self, config: abi.Config) -> tuple[str, bytes]:
        """Return the section that holds fl_cfg, and its bytes with `config` in place."""
        place, value = self.elf.symbols.get(_CONSTANTS), config.pack()
        if place is None or place.size != len(value):
            raise AbiMismatch(
                f"{self.path}: {_CONSTANTS} is {place}, expected a variable of {len(value)} bytes"
            )
        section = bytearray(self.elf.sections[place.section])
        section[place.offset : place.offset + place.size] = value
        return place.section, bytes(section)


def ensure_loaded(request: LoadRequest) -> Loaded:
    """Have the requested programs and maps pinned; without a change, start no process and write nothing.

    Raises VerifierRejected, AbiMismatch, or BpfUnavailable (rights, bpffs, object, python3-bpfcc) for the tc
    programs. What fails about fl_xdp ends in `Loaded.xdp_error` instead. Old generations stay: the caller
    removes them when nothing is attached from them any more.
    """
    pins.require_bpffs(request.root)
    where = pins.Pins.of(request.network, request.root)
    family = family_of(request.network)
    tc = _Object(request.objects / _NAMES[family][0], family, complete=True)
    xdp, xdp_error = _optional_xdp(request)
    maps = where.generation("maps", _layout_digest([tc, xdp] if xdp else [tc], request)).path
    _drop_strangers(maps, [tc, xdp] if xdp else [tc])
    wanted: dict[pins.Kind, _Object] = {"progs": tc}
    if request.xdp and xdp:
        wanted["xdp"] = xdp
    jobs: dict[pins.Kind, libbpf.Job] = {}
    folders: dict[pins.Kind, Path] = {}
    for kind, one in wanted.items():
        job = _job(request, one, maps, where, kind)
        folders[kind] = Path(job.programs)
        if not _intact(folders[kind], maps, one):
            jobs[kind] = job
    failures = run_jobs(jobs) if jobs else {}
    if "progs" in failures:
        raise failures["progs"]
    if "xdp" in failures:
        xdp_error = str(failures["xdp"])
        del folders["xdp"]
    changed = bool(jobs.keys() - failures.keys())
    programs = {name: info.id for folder in folders.values() for name, info in pins.programs(folder).items()}
    return Loaded(maps, tuple(folders.values()), programs, changed, xdp_error if request.xdp else "")


def _drop_strangers(maps: Path, objects: list[_Object]) -> None:
    """Unpin what lies under a map's name and is no map of its type: libbpf would refuse to load beside it."""
    types = {name: shape.numbers.get("type", 0) for one in objects for name, shape in one.btf.maps.items()}
    with edge(f"pins in {maps}", BpfError):
        for name, kind in types.items():
            pin = maps / name
            if os.path.lexists(pin) and _type_of(pin) != kind:
                log.warning("%s is not our map, unpinning it", pin)
                pins.clear(pin)


def _type_of(pin: Path) -> int:
    try:
        with Map.open(pin) as one:
            return one.info.type
    except BpfError:
        return -1


def _optional_xdp(request: LoadRequest) -> tuple[_Object | None, str]:
    # Read even when not asked for: the maps' digest must not depend on whether XDP is switched on.
    try:
        family = family_of(request.network)
        return _Object(request.objects / _NAMES[family][1], family, complete=False), ""
    except BpfError as error:
        return None, str(error)


def _layout_digest(objects: list[_Object], request: LoadRequest) -> str:
    shapes = []
    every = [item for one in objects for item in one.btf.maps.items()]
    for name, shape in sorted(every, key=lambda item: item[0]):
        numbers = dict(shape.numbers)
        numbers["max_entries"] = request.entries.get(name, numbers.get("max_entries", 0))
        shapes.append((name, sorted(numbers.items()), shape.key, shape.value))
    return _digest(repr(shapes).encode())


def _job(request: LoadRequest, one: _Object, maps: Path, where: pins.Pins, kind: pins.Kind) -> libbpf.Job:
    section, rodata = one.constants(request.config)
    digest = _digest(one.image, rodata, maps.name.encode())
    return libbpf.Job(
        object=str(one.path),
        rodata_section=section,
        rodata=rodata.hex(),
        entries=dict(request.entries),
        maps=str(maps),
        programs=str(where.generation(kind, digest).path),
    )


def _digest(*parts: bytes) -> str:
    whole = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        whole.update(len(part).to_bytes(8, "little") + part)
    return whole.hexdigest()


def _intact(programs: Path, maps: Path, one: _Object) -> bool:
    """Whether the programs are pinned, are ours, and use the maps that are pinned.

    Somebody may have unpinned one, or pinned one of his own under its name. Asked of pins alone: opening
    anything by its id takes CAP_SYS_ADMIN, which a container need not have.
    """
    if not programs.is_dir():
        return False
    try:
        standing = pins.programs(programs)
    except BpfError:  # something else lies there
        return False
    pinned = {name: info.id for name, info in pins.maps(maps).items()}
    if not pinned.keys() >= one.btf.maps.keys():
        return False
    if any(info.name != name[:15] for name, info in standing.items()):
        return False
    used = {map_id for info in standing.values() for map_id in info.map_ids}
    unpinned = used - set(pinned.values())  # variables and constants are maps, too, and stay without a pin
    return bool(used) and len(unpinned) <= sum(name.startswith(_VARIABLES) for name in one.elf.sections)


_Name = TypeVar("_Name", bound=str)


def run_jobs(jobs: Mapping[_Name, libbpf.Job]) -> dict[_Name, BpfError]:
    """Have a process of its own load objects; return the failures by the jobs' names."""
    command = [sys.executable, "-P", "-m", "flannel_ebpf.kernel.programs.loader"]
    text = json.dumps([asdict(job) for job in jobs.values()])
    try:
        with edge("starting the loader", BpfUnavailable):
            done = subprocess.run(
                command,
                input=text,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT_S,
                check=False,
            )
        answers = json.loads(done.stdout)
    except subprocess.TimeoutExpired as error:
        raise BpfUnavailable(f"loader process gave no answer within {_TIMEOUT_S} s") from error
    except ValueError as error:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise BpfUnavailable(f"loader process failed: {last}") from error
    return {kind: _failure(answer) for kind, answer in zip(jobs, answers, strict=True) if answer}


def _failure(answer: Mapping[str, str]) -> BpfError:
    if answer["kind"] == "verifier":
        return VerifierRejected(answer["message"], answer["log"])
    return BpfUnavailable(answer["message"])


def main(arguments: list[str]) -> int:
    """Run the jobs of a file or of standard input; return 0 when all succeeded."""
    text = Path(arguments[0]).read_text() if arguments else sys.stdin.read()
    answers = [_attempt(libbpf.Job(**job)) for job in json.loads(text)]
    sys.stdout.write(json.dumps(answers) + "\n")
    return 1 if any(answers) else 0


def _attempt(job: libbpf.Job) -> dict[str, str]:
    try:
        libbpf.load(job)
    except VerifierRejected as error:
        return {"kind": "verifier", "message": str(error), "log": error.log}
    except BpfError as error:
        return {"kind": "unavailable", "message": str(error), "log": ""}
    except OSError as error:
        return {"kind": "unavailable", "message": f"{error.filename}: {error.strerror}", "log": ""}
    return {}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
