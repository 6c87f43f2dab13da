"""The whole control plane in one function: what should be there, what is there, what to do about it."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Family
from flannel_ebpf.desired.objects import (
    ANY_PEER_GATEWAY,
    DEVICES,
    ORDER,
    LinkAddress,
    Neighbour,
    Object,
    RelayProcess,
    Route,
    Ruleset,
    TunLink,
    VxlanLink,
    family_in,
)


@dataclass(frozen=True, slots=True)
class Put:
    """Create `obj`, or change `old` (what is there now under the same key) into it."""

    obj: Object
    old: Object | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove `obj`, exactly as it was read."""

    obj: Object


Op = Put | Delete


Weight = Literal["own", "part"]
"""own: without it this node carries nothing; part: one peer's, one pod's, or only how fast packets travel."""


@dataclass(frozen=True, slots=True)
class Failure:
    """An operation that the edge it belongs to refused, and why.

    `spared`: the node's other family goes on.
    """

    op: Op
    error: KernelError
    spared: bool = False

    @property
    def weight(self) -> Weight:
        """What the failure takes away."""
        match self.op.obj:
            case _ if self.spared:
                return "part"
            case RelayProcess() | VxlanLink() | TunLink() | LinkAddress():
                return "own"
            case Route(gateway=gateway) if gateway in (None, ANY_PEER_GATEWAY):
                return "own"
            case Neighbour(ip=ip) if ip == ANY_PEER_GATEWAY:
                return "own"
            case Ruleset(masquerades=True):
                return "own"
            case _:
                return "part"


def spare(failures: Iterable[Failure], families: Collection[Family]) -> list[Failure]:
    """Return the failures of a node with these families, weighed: one family's stop no other family."""
    failures = list(failures)
    stopped = {family_in(one.op.obj) for one in failures if one.weight == "own"}
    return [replace(one, spared=True) for one in failures] if stopped < set(families) else failures


def plan(desired: Iterable[Object], actual: Iterable[Object], *, may_delete: bool = True) -> list[Op]:
    """Return the operations that turn `actual` into `desired`, in the order in which they are safe.

    Both hold at most one object per kind and key. Additions and changes come first in ORDER, deletions last
    in reverse. `may_delete` is false until the first complete snapshot of etcd has been read. Devices that
    must be made or changed are returned alone: with one the kernel may drop its addresses, routes and
    neighbours, so what was read of them no longer counts and the caller reads again.
    """
    desired, actual = list(desired), list(actual)
    # Nearly all are the very same objects on both sides; to compare thousands by value takes long.
    same = set(map(id, desired)) & set(map(id, actual))
    wanted = {obj for obj in desired if id(obj) not in same}
    present = {obj for obj in actual if id(obj) not in same}
    if wanted == present:
        return []
    stale = {_identity(obj): obj for obj in present - wanted}
    puts = [Put(obj, stale.pop(_identity(obj), None)) for obj in wanted - present]
    puts.sort(key=lambda op: ORDER.index(type(op.obj)))
    devices: list[Op] = [put for put in puts if isinstance(put.obj, DEVICES)]
    if devices:
        return devices
    deletes = [Delete(obj) for obj in stale.values()] if may_delete else []
    deletes.sort(key=lambda op: -ORDER.index(type(op.obj)))
    return [*puts, *deletes]


def _identity(obj: Object) -> tuple[type, Hashable]:
    return (type(obj), obj.key)
