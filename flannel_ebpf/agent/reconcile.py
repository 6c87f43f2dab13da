"""One pass of the control loop: for every side what is wanted and what is there, one plan, apply.

The lease's way: `Cluster` (etcd) -> backend.peers -> Side.wanted -> plan -> Side.apply.
A short pass goes the same way with the leases that changed, and knows from the last pass what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from functools import cached_property
from ipaddress import ip_interface
from itertools import groupby
from typing import NamedTuple

from flannel_ebpf.agent.bpf_side import AT_ONCE, BpfSide
from flannel_ebpf.agent.firewall_side import FirewallSide
from flannel_ebpf.agent.kernel_side import KernelSide
from flannel_ebpf.agent.on_demand import OnDemand
from flannel_ebpf.agent.relay_side import RelaySide
from flannel_ebpf.agent.side import Round, Side, scope_of
from flannel_ebpf.base.errors import DeviceMissing, FlannelError
from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.base.kept import same_objects
from flannel_ebpf.base.model import Lease, LeasePart, Mac, PathFacts, Skipped
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, Peer, Surroundings
from flannel_ebpf.desired.demand import Used
from flannel_ebpf.desired.objects import (
    DEVICES,
    FdbEntry,
    Neighbour,
    Object,
    RelayPeer,
    Route,
    Scope,
    Sysctl,
    device_of,
)
from flannel_ebpf.desired.plan import Failure, Op, Weight, plan, spare
from flannel_ebpf.desired.proof.proof import Proof
from flannel_ebpf.desired.short_pass import Settled, admitted, change, follow
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.paths import Paths, ask_paths, path_facts
from flannel_ebpf.kernel.pods import pod_ports
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.surroundings import surroundings

ROUNDS = 3
"""A device change is planned alone: one round makes it, the next does the rest, one is spare."""


@dataclass(frozen=True, slots=True)
class Sides:
    """The four sides of a node, in no order: what they want is planned together."""

    kernel: KernelSide
    firewall: FirewallSide
    bpf: BpfSide
    relay: RelaySide
    bpf_v6: BpfSide | None = None
    """Of a dual-stack network, whose `bpf` is IPv4's: planned alone, as its objects bear the same names."""

    def __iter__(self) -> Iterator[Side]:
        sides: tuple[Side, ...] = (self.kernel, self.firewall, self.bpf, self.relay)
        return iter(sides)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one pass found and did.

    `failures` are the operations that failed; `stopped` is what ended the pass before it had tried them
    all. `writes` counts the operations carried out, 0 when everything was right. `accelerated` is whether BPF
    programs stand on their hooks, `attach` how; `why_not` says why they do not although they were asked for;
    `lacks` names the kernel features that they do without.
    `warnings` are things about this host that endanger connections. `proof` is what rules concern which pods,
    None where all packets are treated alike. `peers` and `failed_peers`: how many there are, and
    to how many of them no way could be made. `again`: seconds after which a pass has something to do
    in any case, 0 when nothing waits. `used`: how many peers have kernel objects, None when all have.
    """

    peers: int = 0
    failed_peers: int = 0
    skipped: Sequence[Skipped] = ()
    failures: Sequence[Failure] = ()
    stopped: FlannelError | None = None
    writes: int = 0
    pods: int = 0
    accelerated: bool = False
    attach: str = ""
    why_not: str = ""
    lacks: Sequence[str] = ()
    warnings: Sequence[str] = ()
    proof: Proof | None = None
    again: float = 0.0
    used: int | None = None

    def errors(self, weight: Weight) -> list[FlannelError]:
        """Return why something failed that weighs so; what stopped a pass counts as the node's own."""
        stopped = [self.stopped] if self.stopped and weight == "own" else []
        return [*stopped, *(one.error for one in self.failures if one.weight == weight)]


@dataclass(frozen=True)
class _Found:
    """What a pass made of leases and of the ways to them, as long as neither changes."""

    node: Node | None = None
    around: Mapping[Family, Surroundings] = field(default_factory=dict)
    leases: Sequence[Lease] = ()
    usable: Sequence[LeasePart] = ()
    strange: Sequence[Skipped] = ()
    paths: Paths | None = None
    peers: Sequence[Peer] = ()
    skipped: Sequence[Skipped] = ()

    @cached_property
    def addresses(self) -> Mapping[Family, AbstractSet[Address]]:
        """Where the leases' nodes are, by family."""
        found: dict[Family, set[Address]] = {family: set() for family in Family}
        for part in self.usable:
            found[family_of(part.public_ip)].add(part.public_ip)
        return found


class _Done(NamedTuple):
    """What one round of a pass did. `last`: it leaves nothing to plan anew."""

    writes: int
    failures: Sequence[Failure]
    last: bool


class Reconciler:
    """Brings this node in line with the leases, however far off it is.

    `on_demand` decides which peers have kernel objects; `servers` tells the addresses of those that the
    leases come from.
    """

    def __init__(
        self,
        kernel: KernelNetwork,
        sides: Sides,
        on_demand: OnDemand,
        servers: Callable[[], Collection[Address]],
    ) -> None:
        self._kernel = kernel
        self._on_demand = on_demand
        self._servers = servers
        self._sides = sides
        self._side_of: dict[type, Side] = {kind: side for side in sides for kind in side.kinds}
        self._found = _Found()
        self._settled: Settled | None = None
        self._last = Outcome()

    def run(self, node: Node, leases: Sequence[Lease], seen: Seen, *, may_delete: bool) -> Outcome:
        """Do one pass, starting from what was `seen`, and say what it did.

        Raises KernelError when the kernel cannot be read, ProgramsRequired.
        """
        before, self._settled = self._settled, None
        peers, skipped, seen = self._find_peers(node, leases, seen)
        now = Round(node, peers, pod_ports(seen, node.subnets), seen)
        writes = 0
        failures: list[Failure] = []
        for _ in range(ROUNDS):
            done = self._round(now, may_delete=may_delete)
            writes += done.writes
            failures += done.failures if done.last else [it for it in done.failures if _of_a_device(it)]
            if done.last:
                break
            now = replace(now, seen=self._kernel.look(), broken=now.broken | _broken(done.failures))
        failures = spare(failures, [stack.family for stack in node.stacks])
        bpf, v6, demand = self._sides.bpf, self._sides.bpf_v6, self._on_demand
        complete = may_delete and not demand.opening
        demand.done(node, now.seen, failures)
        if v6:
            done_v6 = self._alone(v6, now, may_delete=may_delete)
            writes, failures = writes + done_v6.writes, [*failures, *done_v6.failures]
        if (
            done.last
            and complete
            and not v6
            and not any(_of_a_device(one) or one.weight == "own" for one in failures)
        ):
            by_subnet = {peer.subnet: peer for peer in now.peers}
            around, slots = self._found.around, None if bpf.slots is None else dict(bpf.slots)
            settled = Settled(
                node, around, leases, by_subnet, skipped, slots, bpf.slot_count, _subnets(demand.last)
            )
            self._settled = settled.tied(before)
        self._last = Outcome(
            len(now.peers),
            failed_peers(now.peers, failures),
            skipped,
            failures,
            writes=writes,
            pods=len(now.ports),
            accelerated=bpf.accelerated,
            attach=bpf.attach if bpf.accelerated else "",
            why_not=bpf.why_not,
            lacks=bpf.lacks if bpf.accelerated else (),
            warnings=[
                *self._sides.kernel.warnings,
                *bpf.warnings,
                *(v6.told if v6 else ()),
                *filter(None, [demand.warning]),
            ],
            proof=bpf.proof,
            again=_first_due(bpf.due, v6.due if v6 else 0.0, AT_ONCE if may_delete and not complete else 0.0),
            used=None if demand.last is None else len(demand.last),
        )
        return self._last

    def take_address(self, node: Node, leases: Sequence[Lease], seen: Seen) -> None:
        """Bring what the kernel carries up to a new address of this node, before a pass that takes longer.

        Until that pass has loaded programs with the address, every packet goes the kernel's way. What fails
        here, the pass meets again and tells. Raises KernelError.
        """
        self._settled = None
        for side in (self._sides.bpf, self._sides.bpf_v6):
            if side:
                side.stand_aside()
        peers, _, seen = self._find_peers(node, leases, seen)
        now = Round(node, peers, pod_ports(seen, node.subnets), seen, used=self._on_demand.last)
        sides: tuple[Side, ...] = (self._sides.kernel, self._sides.relay)
        wanted = [obj for side in sides for obj in side.wanted(now)]
        actual = [obj for side in sides for obj in side.read(now, wanted)]
        self._apply(plan(wanted, actual, may_delete=False), scope_of(node.stacks[0]))

    def _find_peers(
        self, node: Node, leases: Sequence[Lease], seen: Seen
    ) -> tuple[Sequence[Peer], Sequence[Skipped], Seen]:
        """Return the peers, the leases that are none, and the tables from which their ways were read.

        Where nothing has changed since the last pass it is all the very same objects as then.
        """
        found = self._found
        uplinks = [stack.uplink for stack in node.stacks]
        links = (ip_interface((int(uplink.ip), uplink.prefix_len)).network for uplink in uplinks)
        networks = (*node.config.networks, *links)
        if seen.within and seen.within != networks:  # the uplink is another: its neighbourhood was not read
            self._kernel.interest.tell(networks, (), ())
            seen = self._kernel.look()
        around = {stack.family: surroundings(seen, stack, self._servers()) for stack in node.stacks}
        if (node, around) != (found.node, found.around) or not same_objects(leases, found.leases):
            usable, strange = backends.usable(node, leases, around)
            found = _Found(node, around, leases, usable, strange)
        ways = [path_facts(seen, found.addresses[family_of(uplink.ip)], uplink) for uplink in uplinks]
        asked = [address for way in ways for address in way.asked]
        self._kernel.interest.tell(networks, asked, frozenset[int]().union(*(way.tables for way in ways)))
        paths = {address: path for way in ways for address, path in way.paths.items()}
        if found is not self._found or paths != found.paths:
            peers, unusable = backends.peers(node, found.usable, paths)
            found = replace(found, paths=paths, peers=peers, skipped=[*found.strange, *unusable])
        self._found = found
        return found.peers, found.skipped, seen

    def _round(self, now: Round, *, may_delete: bool) -> _Done:
        """Ask every side what it wants and what is there, plan from that, and carry it out.

        The programs come first: which peers need kernel objects depends on whether they can do without.
        """
        wanted: list[Object] = [*self._sides.bpf.wanted(now)]
        now = replace(now, used=self._on_demand.used(now.node, now.peers))
        wanted += (obj for side in self._sides if side is not self._sides.bpf for obj in side.wanted(now))
        actual = [obj for side in self._sides for obj in side.read(now, wanted)]
        if now.broken:
            wanted = [obj for obj in wanted if device_of(obj) not in now.broken]
            actual = [obj for obj in actual if device_of(obj) not in now.broken]
        ops = plan(wanted, actual, may_delete=may_delete and not self._on_demand.opening)
        failures = self._apply(ops, scope_of(now.node.stacks[0]))
        anew = any(isinstance(op.obj, DEVICES) for op in ops) or _broken(failures) - now.broken
        return _Done(len(ops) - len(failures), failures, last=not anew)

    def _alone(self, side: BpfSide, now: Round, *, may_delete: bool) -> _Done:
        """Bring one side's objects in line that no other side's depend on."""
        stack = now.node.stacks[-1]
        wanted = side.wanted(now)
        ops = plan(wanted, side.read(now, wanted), may_delete=may_delete)
        failures = side.apply(ops, scope_of(stack))
        return _Done(len(ops) - len(failures), failures, last=True)

    def follow(self, leases: Sequence[Lease]) -> Outcome | None:
        """Do a short pass: carry out what these leases alter, taking what the last pass left as it was.

        None when that takes a whole pass, also because something failed. Raises KernelError likewise.
        """
        before, self._settled = self._settled, None
        if before is None or self._sides.bpf.peers_matter:
            return None
        node, changed = before.node, change(before.leases, leases)
        addresses = [part.public_ip for lease in changed.come for part in lease.parts]
        paths: dict[Address, PathFacts] = {}
        for stack in node.stacks:
            paths |= ask_paths(self._kernel.netlink, _like(stack.uplink.ip, addresses), stack.uplink)
        done = follow(before, leases, changed, paths)
        if done is None:
            return None
        after, ops = done
        if self._apply(ops, scope_of(node.stacks[0])):
            return None
        self._settled = after
        self._last = replace(self._last, peers=len(after.peers), writes=len(ops))
        return self._last

    def admit(self) -> Outcome | None:
        """Give kernel objects to peers that packets were sent to; None when that takes a whole pass.

        Where there is nothing to do, the outcome is the last one. Raises KernelError.
        """
        used = self._on_demand.asked()
        if used is None:
            return self._last
        before, self._settled = self._settled, None
        if before is None:
            return None
        after, ops = admitted(before, used.keys())
        if self._apply(ops, scope_of(before.node.stacks[0])):
            return None
        self._settled, self._last = after, replace(self._last, used=len(used))
        return self._last

    def _apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Hand each run of operations to the side it belongs to, in the plan's order.

        What comes later is left out when a device failed or is missing: most of it needs that.
        """
        failures: list[Failure] = []
        for side, group in groupby(ops, lambda op: self._side_of[type(op.obj)]):
            failures += side.apply(list(group), scope)
            if any(_of_a_device(failure) for failure in failures):
                break
        return failures


def failed_peers(peers: Iterable[Peer], failures: Iterable[Failure]) -> int:
    """Return to how many peers the kernel path could not be made, by whatever of it failed."""
    failed: set[Network | Mac] = set()
    for failure in failures:
        match failure.op.obj:
            case Route(dst=subnet) | RelayPeer(subnet=subnet):
                failed.add(subnet)
            case Neighbour(mac=mac) | FdbEntry(mac=mac):
                failed.add(mac)
    return sum(not failed.isdisjoint((peer.subnet, peer.vtep_mac)) for peer in peers) if failed else 0


def _first_due(*dues: float) -> float:
    """Return the least that is not 0: nothing waits."""
    return min(filter(None, dues), default=0.0)


def _subnets(used: Used | None) -> frozenset[Network] | None:
    return None if used is None else frozenset(used)


def _like(own: Address, addresses: Iterable[Address]) -> list[Address]:
    """Return those of our own address's family."""
    return [address for address in addresses if address.version == own.version]


def _broken(failures: Iterable[Failure]) -> frozenset[str]:
    """Return the devices that could not be made or are missing, as far as they have a name."""
    return frozenset(device_of(one.op.obj) for one in failures if _of_a_device(one)) - {""}


def _of_a_device(failure: Failure) -> bool:
    missing = isinstance(failure.error, DeviceMissing) and not isinstance(failure.op.obj, Sysctl)
    return missing or isinstance(failure.op.obj, DEVICES)
