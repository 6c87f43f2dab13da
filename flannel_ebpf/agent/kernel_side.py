"""The kernel path in a pass: devices, addresses, sysctls, neighbours, FDB entries and routes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from flannel_ebpf.agent.side import Round, scope_of
from flannel_ebpf.base.errors import FlannelError, KernelError
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.desired import backends, demand
from flannel_ebpf.desired.backends import Node, Peer
from flannel_ebpf.desired.objects import (
    LAST_METRIC,
    FdbEntry,
    LinkAddress,
    Neighbour,
    Object,
    Route,
    Scope,
    Sysctl,
    TunLink,
    VxlanLink,
)
from flannel_ebpf.desired.plan import Failure, Op, Put
from flannel_ebpf.kernel import advertised, sysctl
from flannel_ebpf.kernel.network import KernelNetwork

log = logging.getLogger(__name__)


class KernelSide:
    """What the backend asks of the kernel. `remember` is told of a sysctl of the host before it is changed.

    With `blackhole`, packets for addresses of the own subnet that no bridge has go nowhere.
    """

    kinds = (VxlanLink, TunLink, LinkAddress, Sysctl, Neighbour, FdbEntry, Route)

    def __init__(
        self, kernel: KernelNetwork, remember: Callable[[Sysctl], None], *, blackhole: bool = False
    ) -> None:
        self._kernel = kernel
        self._remember = remember
        self._blackhole = blackhole
        self._borrowed: set[str] = set()
        self.warnings: list[str] = []
        """What about this host keeps a family from its packets, in the last round."""
        self._node: Node | None = None
        self._peers: Sequence[Peer] = ()
        self._used: frozenset[Network] | None = None
        self._objects: list[Object] = []
        self._known: dict[Object, Object] = {}
        self._routes: Mapping[Network, Address | None] = {}

    def wanted(self, now: Round) -> list[Object]:
        """Return the backend's objects for this node and its peers.

        Of the values under /proc/sys only those that there are: a device of less than 1280 octets has none of
        IPv6's, and a host may have no IPv6 at all.
        """
        used = None if now.used is None else frozenset(now.used)
        if now.node != self._node or now.peers is not self._peers or used != self._used:
            self._remake(now.node, now.peers, used)
        obstacles = backends.obstacles(now.node)
        self.warnings = [f"{family} has no way: {why}" for family, why in obstacles.items()]
        v6 = now.node.stack(Family.V6)
        self.warnings += advertised.warnings(now.seen, v6.uplink) if v6 else ()
        missing = {obj for obj in self._objects if isinstance(obj, Sysctl) and sysctl.read(obj.path) is None}
        return [obj for obj in self._objects if obj not in missing] if missing else self._objects

    def _remake(self, node: Node, peers: Sequence[Peer], used: frozenset[Network] | None) -> None:
        """Make the backend's objects anew; those that stay as they are stay the same objects."""
        objects = demand.objects(node, peers, used)
        if self._blackhole:
            for subnet in node.subnets:
                objects.append(Route(subnet, None, "", blackhole=True, metric=LAST_METRIC))
        self._objects = [self._known.get(obj, obj) for obj in objects]
        self._known = {obj: obj for obj in self._objects}
        nodes = {peer.subnet: peer.public_ip for peer in peers}
        nodes |= {stack.subnet: stack.public_ip for stack in node.stacks}
        dsts = (obj.dst for obj in self._objects if isinstance(obj, Route))
        self._routes = {dst: nodes[dst] for dst in dsts if dst in nodes}
        self._node, self._peers, self._used = node, peers, used

    def read(self, now: Round, wanted: Sequence[Object]) -> Iterable[Object]:
        """Return this network's kernel path, and the routes of others that are to be adopted."""
        for stack in now.node.stacks:
            yield from self._kernel.read(now.seen, scope_of(stack), wanted=self._routes, known=self._known)
        yield from self._kernel.sysctls(obj.path for obj in wanted if isinstance(obj, Sysctl))

    def apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Carry out operations on the kernel path; return those that failed.

        A value of the host that could not be given back later stays as it is.
        """
        failures: list[Failure] = []
        for op in ops:
            if isinstance(op.obj, Sysctl) and op.obj.lent and isinstance(op, Put):
                failures += self._borrow(op, op.obj)
        kept = [failure.op for failure in failures]
        return failures + self._kernel.apply([op for op in ops if op not in kept] if kept else ops)

    def _borrow(self, op: Put, wanted: Sysctl) -> list[Failure]:
        """Remember a value of the host's that is about to be changed, and say so."""
        if not isinstance(op.old, Sysctl):
            return []
        name = wanted.path.replace("/", ".")
        try:
            self._remember(op.old)
        except FlannelError as error:
            return [Failure(op, KernelError(f"{name} is left as it is: {error}"))]
        again = "somebody had set it back" if wanted.path in self._borrowed else "`down` gives it back"
        self._borrowed.add(wanted.path)
        log.info("%s: %s -> %s; %s", name, op.old.value, wanted.value, again)
        return []

    def programmed(self, node: Node) -> frozenset[Network]:
        """Return the remote subnets that the kernel has routes of ours to: what a former process left."""
        seen = self._kernel.look()
        found = (obj for stack in node.stacks for obj in self._kernel.read(seen, scope_of(stack)))
        routes = [obj for obj in found if isinstance(obj, Route) and obj.dst not in node.config.networks]
        return frozenset(route.dst for route in routes if not route.blackhole)
