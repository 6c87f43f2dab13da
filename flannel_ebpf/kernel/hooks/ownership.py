"""Which programs in the kernel are ours: their names and constants say so, pinned or not.

A program keeps its id until it is gone and no other gets it, so each is asked only once. Asking takes
CAP_SYS_ADMIN; without it ours are those that are pinned.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.base.family import Network
from flannel_ebpf.kernel.bpf import Map, Program

_NAMES = frozenset({"fl_from_pod", "fl_to_pod", "fl_from_peer", "fl_to_peer", "fl_xdp"})

_PINS: dict[int, Path] = {}
"""Where programs are pinned that could not be asked."""


def name_in(
    network: Network, program_id: int, pinned: Callable[[], Mapping[int, Path]] = dict[int, Path]
) -> str:
    """Return the name of a program that was loaded for `network`, "" for every other one.

    `pinned` tells the ids of the network's pinned programs, for a process that may not ask the kernel.
    """
    try:
        name, about = _told(program_id)
    except BpfError as error:
        if error.code != errno.EPERM:  # it went away since it was seen
            return ""
        pins = pinned()
        _PINS.update(pins)
        return pins[program_id].name if program_id in pins else ""
    length = network.max_prefixlen // 8
    expected = network.network_address.packed + network.netmask.packed
    return name if about[length : 3 * length] == expected else ""


def name_of(program_id: int) -> str:
    """Return the name of a program that was loaded for any network of ours, "" for every other one."""
    try:
        name, about = _told(program_id)
    except BpfError:
        return ""
    return name if about else ""


def is_foreign(program_id: int) -> bool:
    """Say whether a program is of none of our networks; one that is gone is nobody's at all."""
    try:
        return not _told(program_id)[1]
    except BpfError as error:
        return error.code == errno.EPERM and program_id not in _PINS


def opened(program_id: int) -> Program:
    """Open a program that `name_in` has named. Raises BpfError, code ENOENT when it is gone."""
    try:
        return Program.by_id(program_id)
    except BpfError as error:
        if error.code != errno.EPERM or program_id not in _PINS:
            raise
    program = Program.open(_PINS[program_id])
    if program.info().id != program_id:
        program.close()
        raise BpfError(f"program {program_id}: another one is pinned at {_PINS[program_id]}", errno.ENOENT)
    return program


@lru_cache(4096)
def _told(program_id: int) -> tuple[str, bytes]:
    """Return a program's name, and the beginning of its constants (empty: none of ours).

    fl_config begins with the public address, the network and its mask, in every build of either family.
    """
    with Program.by_id(program_id) as program:
        info = program.info()
    for map_id in info.map_ids if info.name in _NAMES else ():
        with Map.by_id(map_id) as one:
            if one.info.name.endswith(".rodata"):
                return info.name, (one.lookup(bytes(4)) or b"")[:48]
    return info.name, b""
