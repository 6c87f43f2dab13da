"""Which programs in the kernel are ours: their names and constants say so, pinned or not.

A program keeps its id until it is gone and no other gets it, so each is asked only once.
"""

from __future__ import annotations

from functools import lru_cache

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.base.family import Network
from flannel_ebpf.kernel.bpf import Map, Program

_NAMES = frozenset({"fl_from_pod", "fl_to_pod", "fl_from_peer", "fl_to_peer", "fl_xdp"})


def name_in(network: Network, program_id: int) -> str:
    """Return the name of a program that was loaded for `network`, "" for every other one."""
    try:
        name, about = _told(program_id)
    except BpfError:  # it went away since it was seen
        return ""
    return name if about == network.network_address.packed + network.netmask.packed else ""


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
    except BpfError:
        return False


@lru_cache(4096)
def _told(program_id: int) -> tuple[str, bytes]:
    """Return a program's name, and its network's address and mask (empty: none of ours).

    fl_config begins with the public address, the network and its mask, in every build.
    """
    with Program.by_id(program_id) as program:
        info = program.info()
    for map_id in info.map_ids if info.name in _NAMES else ():
        with Map.by_id(map_id) as one:
            if one.info.name.endswith(".rodata"):
                return info.name, (one.lookup(bytes(4)) or b"")[4:12]
    return info.name, b""
