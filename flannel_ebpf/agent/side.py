"""The one shape of everything that a pass keeps right: what is wanted, what is there, apply.

Four sides have it: the kernel path, the firewall, the programs, the relay. What they want and find are values
of desired/objects.py, so that one `plan` puts all their operations into the one order that is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flannel_ebpf.base.model import PodPort
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, Peer, Stack
from flannel_ebpf.desired.demand import Used
from flannel_ebpf.desired.objects import Object, Scope
from flannel_ebpf.desired.plan import Failure, Op
from flannel_ebpf.kernel.seen import Seen


@dataclass(frozen=True, slots=True)
class Round:
    """What the sides of one round stand on: this node, its peers and pods, and the kernel's tables.

    `used` are the peers that have kernel objects of their own, None when all have. `broken` are the devices
    that could not be made or found in this pass: what stands on them is left alone, and all else goes on.
    """

    node: Node
    peers: Sequence[Peer]
    ports: Sequence[PodPort]
    seen: Seen
    broken: frozenset[str] = frozenset()
    used: Used | None = None


class Side(Protocol):
    """One part of what carries packets. Its methods raise KernelError when the kernel cannot be read."""

    @property
    def kinds(self) -> tuple[type, ...]:
        """The objects that it reads and applies; another side may want some of them too."""

    def wanted(self, now: Round) -> Iterable[Object]:
        """Return the objects that should be there; asked before `read`."""

    def read(self, now: Round, wanted: Sequence[Object]) -> Iterable[Object]:
        """Return the objects of its kinds that are there and ours. `wanted` is what all sides want."""

    def apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Carry out operations on its kinds, in order; return those that failed."""


def scope_of(stack: Stack) -> Scope:
    """Return what tells the objects of one family of this network from everybody else's."""
    return Scope(stack.network, stack.subnet, backends.overlay_of(stack), stack.uplink.ifindex)
