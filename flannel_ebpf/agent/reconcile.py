"""One pass of the control loop: read what is there, plan, apply.

The lease's way: `Cluster` (etcd) -> backend.peers -> backend.objects -> plan -> KernelNetwork and Datapath.
What the BPF side should hold of it beside the kernel path, `Acceleration` says.
A short pass goes the same way with the leases that changed, and knows from the last pass what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Network
from itertools import groupby
from typing import NamedTuple

from flannel_ebpf.agent.bpf_side import BE_LIBERAL, Acceleration
from flannel_ebpf.agent.firewall_side import Firewall
from flannel_ebpf.base.errors import DeviceMissing, KernelError
from flannel_ebpf.base.model import Lease, PodPort, Skipped
from flannel_ebpf.desired.backends import Node, Paths, Peer, backend_of, part
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.objects import (
    LAST_METRIC,
    MapEntry,
    Object,
    Route,
    Ruleset,
    Scope,
    Sysctl,
    VxlanLink,
)
from flannel_ebpf.desired.plan import Failure, Op, Put, plan
from flannel_ebpf.desired.short_pass import Settled, change, follow
from flannel_ebpf.kernel.hooks.ownership import name_in
from flannel_ebpf.kernel.netlink import xfrm
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.programs.loader import Loaded

ROUNDS = 3
"""A device change is planned alone: one round makes it, the next does the rest, one is spare."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pass found and did.

    `errors` are the operations that failed, or the one thing that stopped the pass; `writes` counts the
    operations carried out, 0 when everything was right. `accelerated` is whether BPF programs stand on
    their hooks, `attach` how; `why_not` says why they do not although they were asked for. `again`: seconds
    after which a pass has something to do in any case, 0 when nothing waits.
    """

    peers: Sequence[Peer] = ()
    skipped: Sequence[Skipped] = ()
    errors: Sequence[KernelError] = ()
    writes: int = 0
    pods: int = 0
    accelerated: bool = False
    attach: str = ""
    why_not: str = ""
    again: float = 0.0


class _Round(NamedTuple):
    """What one round of a pass did. `last`: it leaves nothing to plan anew. `slots` as in Settled."""

    writes: int
    failures: Sequence[Failure]
    slots: contents.Slots | None
    last: bool


class Reconciler:
    """Brings this node's kernel in line with the leases, however far off it is.

    `remember` is told of a sysctl before it is changed. With `blackhole`, packets for addresses of the own
    subnet that no bridge has go nowhere.
    """

    def __init__(
        self,
        kernel: KernelNetwork,
        firewall: Firewall,
        acceleration: Acceleration,
        remember: Callable[[Sysctl], None],
        *,
        blackhole: bool = False,
    ) -> None:
        self._kernel = kernel
        self._links = kernel.links
        self._firewall = firewall
        self._acceleration = acceleration
        self._bpf = acceleration.bpf
        self._remember = remember
        self._blackhole = blackhole
        self._settled: Settled | None = None
        self._last = Outcome()

    def run(self, node: Node, leases: Sequence[Lease], *, may_delete: bool) -> Outcome:
        """Do one pass and say what it did.

        Raises KernelError when the kernel cannot be read, BpfError when programs are required and
        cannot run.
        """
        self._settled = None
        usable, strange = part(node.config.network, leases)
        paths = self._links.path_facts({lease.public_ip for lease in usable}, node.uplink)
        peers, unusable = backend_of(node.config).peers(node, usable, _marked(node, paths))
        skipped = [*strange, *unusable]
        ports = self._links.pod_ports(node.subnet)
        loaded, why_not = self._acceleration.load(node, peers)
        writes = 1 if loaded and loaded.changed else 0
        for _ in range(ROUNDS):
            done = self._round(node, peers, ports, loaded, may_delete=may_delete)
            writes += done.writes
            if done.last:
                break
        if done.last and may_delete and not done.failures:
            size = self._bpf.slots() if done.slots is not None and self._bpf else 0
            by_subnet = {peer.subnet: peer for peer in peers}
            self._settled = Settled(node, leases, by_subnet, skipped, done.slots, size)
        if not done.failures:
            self._acceleration.sweep(node.config.network, loaded)
        self._last = Outcome(
            peers,
            skipped,
            [failure.error for failure in done.failures],
            writes,
            len(ports),
            accelerated=loaded is not None,
            attach=self._acceleration.attach if loaded else "",
            why_not=why_not,
            again=self._acceleration.newcomers.due,
        )
        return self._last

    def _round(
        self,
        node: Node,
        peers: Sequence[Peer],
        ports: Sequence[PodPort],
        loaded: Loaded | None,
        *,
        may_delete: bool,
    ) -> _Round:
        """Read what is there, plan from it, and carry that out."""
        wanted = [*backend_of(node.config).objects(node, peers), *self._firewall.wanted(node)]
        if self._blackhole:
            wanted.append(Route(node.subnet, None, "", blackhole=True, metric=LAST_METRIC))
        entries: list[MapEntry] = []
        slots: contents.Slots | None = None
        if loaded and self._bpf:
            entries = self._bpf.read()
            slots = contents.assign_slots(peers, contents.slots_in(entries), self._bpf.slots())
            wanted += self._acceleration.wanted(node, peers, slots, ports, loaded.programs, entries)
        scope = _scope(node, wanted)
        routes = frozenset(obj.dst for obj in wanted if isinstance(obj, Route))
        actual = [
            *self._kernel.read(scope, wanted=routes, program_name=partial(name_in, node.config.network)),
            *self._firewall.read(node.config.network),
            *entries,
        ]
        ops = plan(wanted, actual, may_delete=may_delete)
        failures = self._apply(ops, scope)
        refused = self._acceleration.extras.refused(failures)
        left = [failure for failure in failures if failure not in refused]
        last = not refused and not any(isinstance(op.obj, VxlanLink) for op in ops)
        return _Round(len(ops) - len(failures), left, slots, last)

    def follow(self, leases: Sequence[Lease]) -> Outcome | None:
        """Do a short pass: carry out what these leases alter, taking what the last pass left as it was.

        None when that takes a whole pass, also because something failed. Raises KernelError likewise.
        """
        before, self._settled = self._settled, None
        if before is None:
            return None
        changed = change(before.leases, leases)
        paths = self._links.ask_paths([lease.public_ip for lease in changed.come])
        done = follow(before, leases, changed, _marked(before.node, paths))
        if done is None:
            return None
        after, ops = done
        if self._apply(ops, _scope(before.node, ())):
            return None
        self._settled = after
        self._last = replace(self._last, peers=tuple(after.peers.values()), writes=len(ops))
        return self._last

    @property
    def accelerates(self) -> bool:
        """Whether BPF programs are wanted and possible here."""
        return self._bpf is not None

    def programmed(self, node: Node) -> frozenset[IPv4Network]:
        """Return the remote subnets that the kernel has routes of ours to: what a former process left."""
        found = self._kernel.read(_scope(node, ()))
        routes = [obj for obj in found if isinstance(obj, Route) and obj.dst != node.config.network]
        return frozenset(route.dst for route in routes if not route.blackhole)

    def _apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Hand each run of operations to the edge it belongs to, in the plan's order.

        Filters come last in it and are left out when anything before them failed that they need.
        """
        failures: list[Failure] = []
        for kind, group in groupby(ops, lambda op: _edge(op.obj)):
            batch = list(group)
            if kind is Ruleset:
                failures += self._firewall.apply(batch)
            elif kind is MapEntry and self._bpf:
                failures += self._bpf.apply(batch)
            else:
                for op in batch:
                    if isinstance(op, Put) and isinstance(op.old, Sysctl) and op.old.path == BE_LIBERAL:
                        self._remember(op.old)
                fds = self._bpf.program_fds() if self._bpf else {}
                failures += self._kernel.apply(batch, scope, fds)
            if any(isinstance(failure.error, DeviceMissing) for failure in failures):
                break
        return failures


def _marked(node: Node, paths: Paths) -> Paths:
    return xfrm.mark_paths(paths, node.public_ip, xfrm.outbound_policies())


def _edge(obj: Object) -> type:
    return type(obj) if isinstance(obj, Ruleset | MapEntry) else object


def _scope(node: Node, wanted: Sequence[Object]) -> Scope:
    return Scope(
        network=node.config.network,
        subnet=node.subnet,
        overlay=backend_of(node.config).overlay_name(node.config),
        uplink=node.uplink.ifindex,
        sysctls=tuple(obj.path for obj in wanted if isinstance(obj, Sysctl)),
    )
