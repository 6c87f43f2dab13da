"""What the kernel itself drops of a network's packets, told by a program on its tracepoint skb:kfree_skb.

Nothing of it stays: program and queue live as long as who watches. Layouts are those of bpf/drops.bpf.c.
"""

from __future__ import annotations

import os
import struct
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flannel_ebpf.base.errors import BpfError, BpfUnavailable, edge
from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.contract import btf, elf
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.kernel.bpf.syscall import call
from flannel_ebpf.kernel.programs import libbpf, loader, pins

_OBJECT = "drops.bpf.o"
_RAW_TRACEPOINT_OPEN = 17
_WATCHED = struct.Struct("=16s16s16s16sIHxx")
_DROP = struct.Struct("=QQIII16s16s2s2sBB6x")
_KERNEL_TYPES = Path("/sys/kernel/btf/vmlinux")
_SYMBOLS = Path("/proc/kallsyms")
_PREFIX = "SKB_DROP_REASON_"


@dataclass(frozen=True, slots=True)
class Drop:
    """A dropped packet: when (CLOCK_MONOTONIC, ns), at which device, why, in which function."""

    at: int
    ifindex: int
    reason: str
    function: str
    source: Address
    target: Address
    source_port: int
    target_port: int
    proto: int
    len: int


@contextmanager
def watch(
    networks: Iterable[Network], port: int, objects: Path, root: Path
) -> Iterator[Callable[[], list[Drop]]]:
    """Yield what returns the drops since it was last asked, of this network namespace.

    Those with an address in one of `networks` (one of a family), and those of UDP to `port` (0: none). `root`
    lies in a bpffs. Raises BpfError, BpfUnavailable where the kernel does not tell.
    """
    path = objects / _OBJECT
    with edge(f"reading {path}", BpfUnavailable):
        image = elf.parse(path.read_bytes(), str(path))
    constants = image.symbols["fl_watched"]
    rodata = bytearray(image.sections[constants.section])
    rodata[constants.offset : constants.offset + constants.size] = _watched(networks, port)
    folder = root / f"watch-{os.getpid()}"
    job = libbpf.Job(
        str(path), constants.section, rodata.hex(), {}, str(folder / "maps"), str(folder / "programs")
    )
    try:
        for error in loader.run_jobs({"drops": job}).values():
            raise error
        with (
            Map.open(folder / "maps" / "fl_drops") as queue,
            Program.open(folder / "programs" / "fl_kfree_skb") as program,
        ):
            pins.remove(folder)
            link, _ = call(_RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, program.fd, 0), "watching drops")
            try:
                yield lambda: list(_taken(queue))
            finally:
                os.close(link)
    finally:
        pins.remove(folder)


def _watched(networks: Iterable[Network], port: int) -> bytes:
    of = {family_of(network): network for network in networks}
    octets = [
        part.packed
        for family in Family
        for part in (
            (of[family].network_address, of[family].netmask) if family in of else (family.unspecified,) * 2
        )
    ]
    return _WATCHED.pack(*octets, Path("/proc/self/ns/net").stat().st_ino, port)


def _taken(queue: Map) -> Iterator[Drop]:
    while (raw := queue.pop()) is not None:
        at, location, reason, ifindex, length, source, target, source_port, target_port, version, proto = (
            _DROP.unpack(raw)
        )
        family = Family(version)
        octets = family.bits // 8
        yield Drop(
            at,
            ifindex,
            reasons().get(reason, f"reason_{reason}"),
            _function(location),
            family.address(source[:octets]),
            family.address(target[:octets]),
            int.from_bytes(source_port, "big"),
            int.from_bytes(target_port, "big"),
            proto,
            length,
        )


@cache
def reasons() -> Mapping[int, str]:
    """Return the names of this kernel's reasons (include/net/dropreason-core.h), from its own types."""
    try:
        names = btf.Btf(_KERNEL_TYPES.read_bytes()).enums.get("skb_drop_reason", {})
    except (OSError, BpfError):
        return {}
    return {number: name.removeprefix(_PREFIX).lower() for name, number in names.items()}


@cache
def _functions() -> tuple[list[int], list[str]]:
    lines = (line.split() for line in _SYMBOLS.read_text().splitlines())
    found = sorted((int(place, 16), name) for place, kind, name, *_ in lines if kind in "tT")
    return [place for place, _ in found], [name for _, name in found]


def _function(location: int) -> str:
    """Return in which function of the kernel an address lies, "" where it does not tell."""
    try:
        places, names = _functions()
    except OSError:
        return ""
    at = bisect_right(places, location) - 1
    return names[at] if at >= 0 and places[at] else ""
