"""Where our maps and programs live in bpffs, so that a fresh process finds them and knows what they are.

    <root>/<network>/maps-<digest>/<map>        digest: every map's type, sizes and field layout
    <root>/<network>/progs-<digest>/<program>   digest: object, constants, load options and maps' digest
    <root>/<network>/xdp-<digest>/<program>     likewise, of the XDP object
    <root>/<network>/<IPv6 network>/...         the same of a dual-stack network's other family

A folder of maps is complete whatever is in it: each map stands alone and the loader adds those that lack. A
folder of programs appears under its name by one rename, so it is there whole or not at all. No name has a
dot: bpffs refuses those (kernel/bpf/inode.c: bpf_lookup).
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Literal

from flannel_ebpf.base.errors import BpfError, BpfUnavailable, KernelError, edge
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import BPF_PIN_ROOT
from flannel_ebpf.desired.objects import PinFolder
from flannel_ebpf.desired.plan import Delete, Failure, Op
from flannel_ebpf.kernel.bpf import Map, MapInfo, Program, ProgramInfo

log = logging.getLogger(__name__)

Kind = Literal["maps", "progs", "xdp"]

_KINDS: tuple[Kind, ...] = ("maps", "progs", "xdp")
_UNFINISHED = "-tmp"
_NO_DOTS = str.maketrans("./", "--")
_BPF_FS_MAGIC = 0xCAFE4A11
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Generation:
    """One folder of pins: `kind` says of what, `digest` of which layout or build."""

    kind: Kind
    digest: str
    path: Path

    @property
    def unfinished(self) -> bool:
        """Whether a load was interrupted before this folder got its name."""
        return self.path.name.endswith(_UNFINISHED)


@dataclass(frozen=True, slots=True)
class Pins:
    """All pins of one network."""

    root: Path
    network: str

    @classmethod
    def of(cls, network: Network, root: Path = BPF_PIN_ROOT) -> Pins:
        """Name the pins of a network: 10.1.0.0/16 -> <root>/10-1-0-0-16, fc00::/48 -> <root>/fc00::-48."""
        return cls(root, str(network).translate(_NO_DOTS))

    @property
    def folder(self) -> Path:
        """Folder of everything of this network."""
        return self.root / self.network

    def generation(self, kind: Kind, digest: str) -> Generation:
        """Name a generation, whether it exists or not."""
        return Generation(kind, digest, self.folder / f"{kind}-{digest}")

    def generations(self) -> list[Generation]:
        """List what is there, unfinished folders among them; empty when nothing is."""
        with edge(f"pins in {self.folder}", BpfError):
            return sorted(self._generations(), key=lambda one: one.path)

    def _generations(self) -> Iterator[Generation]:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            kind, _, rest = path.name.partition("-")
            for known in _KINDS:
                if kind == known and path.is_dir():
                    yield Generation(known, rest.removesuffix(_UNFINISHED), path)

    def programs(self) -> dict[int, Path]:
        """Return where this network's programs are pinned, by id; what cannot be opened is none."""
        found: dict[int, Path] = {}
        for one in self.generations():
            if one.kind != "maps":
                with suppress(BpfError):
                    found |= {info.id: one.path / name for name, info in programs(one.path).items()}
        return found

    def remove_all(self) -> None:
        """Unpin everything of this network. What is attached keeps running until it is detached."""
        for one in self.generations():
            remove(one.path)
        for folder in (self.folder, self.root):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def networks(root: Path = BPF_PIN_ROOT) -> set[Network]:
    """Return the networks that have pins here; what else lies in `root` is not ours and left out."""
    found = set()
    with edge(f"pins in {root}", BpfError):
        folders = list(root.iterdir()) if root.is_dir() else []
    for folder in folders:
        address, _, length = folder.name.rpartition("-")
        with suppress(ValueError):
            found.add(ip_network(f"{address.replace('-', '.')}/{length}"))
    return found


def unfinished(path: Path) -> Path:
    """Return the name under which a generation is filled before it is renamed to `path`."""
    return path.with_name(path.name + _UNFINISHED)


def remove(path: Path) -> None:
    """Unpin a whole generation; one that is not there is fine. BpfError when bpffs refuses."""
    with edge(f"unpin {path}", BpfError):
        clear(path)


def clear(path: Path) -> None:
    """Remove whatever is under a name that is ours, folders with all that is in them. Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            clear(inner)
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


def apply(ops: Sequence[Op]) -> list[Failure]:
    """Unpin the folders that are to go; return the operations that failed. Folders are made by the loader."""
    failures = []
    for op in ops:
        if not isinstance(op, Delete) or not isinstance(op.obj, PinFolder):
            continue
        try:
            remove(Path(op.obj.path))
            log.info("dropped %s, which was not in use any more", op.obj.path)
        except BpfError as error:
            failures.append(Failure(op, KernelError(str(error), error.code)))
    return failures


def programs(path: Path) -> dict[str, ProgramInfo]:
    """Ask about every program pinned in a generation, by name; empty when the generation is not there."""
    found = {}
    for pin in _in(path):
        with Program.open(pin) as program:
            found[pin.name] = program.info()
    return found


def maps(path: Path) -> dict[str, MapInfo]:
    """Ask about every map pinned in a generation, by name; empty when the generation is not there."""
    found = {}
    for pin in _in(path):
        with Map.open(pin) as one:
            found[pin.name] = one.info
    return found


def require_bpffs(root: Path = BPF_PIN_ROOT) -> None:
    """Raise BpfUnavailable unless `root` lies in a bpffs that we may enter."""
    try:
        place = next(folder for folder in (root, *root.parents) if folder.is_dir())
    except PermissionError as error:
        raise BpfUnavailable(f"{error.filename}: {error.strerror}: needs root", error.errno or 0) from error
    buffer = ctypes.create_string_buffer(256)
    _libc.statfs(os.fsencode(place), buffer)
    if ctypes.c_long.from_buffer(buffer).value & 0xFFFFFFFF != _BPF_FS_MAGIC:
        mount = "/sys/fs/bpf" if root.is_relative_to("/sys/fs/bpf") else root.parent
        raise BpfUnavailable(
            f"{root} is not in a bpffs: mount -t bpf bpf {mount} "
            "(`ip netns exec` hides the host's: use `nsenter --net` instead)"
        )


def _in(path: Path) -> list[Path]:
    with edge(f"pins in {path}", BpfError):
        return sorted(path.iterdir()) if path.is_dir() else []
