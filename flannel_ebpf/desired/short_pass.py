"""What a change of leases alters: the few objects that differ, among thousands that stay.

After a pass without failure the kernel holds what that pass wanted, until somebody changes it. Where nobody
did, the next pass's operations are `plan(wanted after, wanted before)`, and a peer whose lease is the same
adds nothing to either side. All but the peers that share an object with a changed one can be left out of
both: several leases of one node share its FDB entry and its entry of fl_vteps.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from flannel_ebpf.base.family import Family, Network, in_order
from flannel_ebpf.base.kept import same_objects
from flannel_ebpf.base.model import Lease, Skipped
from flannel_ebpf.desired import backends, demand
from flannel_ebpf.desired.backends import Node, Paths, Peer, Surroundings
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.objects import Object
from flannel_ebpf.desired.plan import Op, plan

CHUNK = 1024
"""Leases that are compared at once."""


class Ties:
    """Which peers share something, and the lengths of subnets: asked of a few peers it costs what they cost.

    It is filled when it is first asked, and then follows what changes: one state's at a time.
    """

    def __init__(self) -> None:
        self._filled = False
        self._by: dict[int | bytes, Network | set[Network]] = {}
        """Nearly all are one subnet's, and a set takes as much memory as a peer."""
        self._lengths: Counter[tuple[int, int]] = Counter()

    def fill(self, peers: Iterable[Peer]) -> None:
        """Take all peers in, unless that has been done."""
        if self._filled:
            return
        self._filled = True
        peers = list(peers)
        claims = [(one, peer.subnet) for peer in peers for one in _claims(peer)]
        self._by = dict(claims)  # a third of the time that a step for each takes
        if len(self._by) < len(claims):
            for one, subnet in claims:
                self._tie(one, subnet)
        self._lengths = Counter(map(_length, peers))

    def add(self, peer: Peer) -> None:
        """Take one in."""
        for one in _claims(peer):
            self._tie(one, peer.subnet)
        self._lengths[_length(peer)] += 1

    def _tie(self, one: int | bytes, subnet: Network) -> None:
        having = self._by.setdefault(one, subnet)
        if isinstance(having, set):
            having.add(subnet)
        elif having != subnet:
            self._by[one] = {having, subnet}

    def remove(self, peer: Peer) -> None:
        """Leave one out that was taken in."""
        for one in _claims(peer):
            having = self._by[one]
            if isinstance(having, set):
                having.discard(peer.subnet)
            if not having or having == peer.subnet:
                del self._by[one]
        self._lengths[_length(peer)] -= 1

    def sharing(self, peers: Iterable[Peer]) -> set[Network]:
        """Return the subnets of those that share a public address or a VTEP MAC with one of these."""
        found = [self._by.get(one, set()) for peer in peers for one in _claims(peer)]
        return {subnet for it in found for subnet in (it if isinstance(it, set) else {it})}

    def lengths(self, family: Family, new: Iterable[Peer] = ()) -> set[int]:
        """Return the lengths of all subnets of a family, with those of `new` peers."""
        known = {length for (version, length), count in self._lengths.items() if version == family and count}
        return known | {peer.subnet.prefixlen for peer in new if peer.subnet.version == family}


def _claims(peer: Peer) -> list[int | bytes]:
    """Return what stands for its public address and its VTEP MAC: those themselves are slow to hash."""
    address = int(peer.public_ip)
    return [address] if peer.vtep_mac is None else [address, peer.vtep_mac.octets]


def _length(peer: Peer) -> tuple[int, int]:
    return (peer.subnet.version, peer.subnet.prefixlen)


@dataclass(frozen=True, slots=True)
class Settled:
    """What a pass without failure or doubt left: every object of these peers stands, and no other peer's.

    `around` is what of each family must not be taken away. `slots` are the peers' indexes below `size` in
    fl_peer_stats, None without programs. `used`: the peers that have kernel objects, None when all have.
    `peers`, `slots` and `ties` are handed on and altered, as copies of 50,000 cost more than all else: a
    state that was followed is used up.
    """

    node: Node
    around: Mapping[Family, Surroundings]
    leases: Sequence[Lease]
    peers: dict[Network, Peer]
    skipped: Sequence[Skipped]
    slots: dict[Network, int] | None
    size: int
    used: AbstractSet[Network] | None = None
    ties: Ties = field(default_factory=Ties)

    def tied(self, before: Settled | None) -> Settled:
        """Return it with its ties at hand: those of `before`, if that had the same peers."""
        if before and before._origin == self._origin and same_objects(before.leases, self.leases):
            return replace(self, ties=before.ties)
        self.ties.fill(self.peers.values())
        return self

    @property
    def _origin(self) -> tuple[object, ...]:
        """Beside the leases, what decides which of them are peers."""
        return self.node, self.around, tuple(self.skipped)


class Change(NamedTuple):
    """The leases that count no longer, and those that count from now on; an altered one is in both."""

    gone: list[Lease]
    come: list[Lease]


def change(before: Sequence[Lease], after: Sequence[Lease]) -> Change:
    """Return how two lists differ. A lease that was not written in between is one and the same object."""
    same = _same_start(before, after)
    before, after = before[same:], after[same:]
    same = _same_start(before[::-1], after[::-1])
    before, after = before[: len(before) - same], after[: len(after) - same]
    had, has = set(map(id, before)), set(map(id, after))
    gone = [lease for lease in before if id(lease) not in has]
    return Change(gone, [lease for lease in after if id(lease) not in had])


def _same_start(some: Sequence[Lease], others: Sequence[Lease]) -> int:
    """Return how many leases they begin with in common; without a step in Python for each of 50,000."""
    at = 0
    while at < len(some) and some[at : at + CHUNK] == others[at : at + CHUNK]:  # compares `is` before `==`
        at += CHUNK
    rest = map(operator.is_, some[at : at + CHUNK], others[at : at + CHUNK])
    same = [*rest, False].index(False)
    return min(at + same, len(some))


def follow(
    settled: Settled, leases: Sequence[Lease], changed: Change, paths: Paths
) -> tuple[Settled, list[Op]] | None:
    """Return the state with `leases`, and the operations that lead there from `settled`, which is used up.

    `changed` is how they differ from settled.leases, `paths` the ways to the leases that have come. None when
    that takes a whole pass: a lease is or was skipped, two contest, or other constants or hooks are needed.
    """
    node = settled.node
    usable, strange = backends.usable(node, changed.come, settled.around)
    new, unusable = backends.peers(node, usable, paths)
    touched = {subnet for lease in (*changed.gone, *changed.come) for subnet in lease.subnets}
    names = set(map(str, touched))
    if strange or unusable or any(one.contest or one.key in names for one in settled.skipped):
        return None
    ties = settled.ties
    ties.fill(settled.peers.values())
    if any(len(ties.lengths(family, new)) > 1 for family in Family):  # a subnet may overlap another
        return None
    peers = settled.peers
    old = [peers[subnet] for subnet in touched if subnet in peers]
    length = _peer_len(node, ties)
    for peer in old:
        ties.remove(peer)
    sharing = [peers[subnet] for subnet in ties.sharing([*old, *new])]
    stood = _objects(settled, [*sharing, *old])
    for peer in new:
        ties.add(peer)
    if _contested(new, sharing) or _peer_len(node, ties) != length:
        return None
    for peer in old:
        del peers[peer.subnet]
    peers.update((peer.subnet, peer) for peer in new)
    _give_slots(settled, touched, new, length)
    after = replace(settled, leases=leases)
    return after, plan(_objects(after, [*sharing, *new]), stood)


def admitted(settled: Settled, used: AbstractSet[Network]) -> tuple[Settled, list[Op]]:
    """Return the state in which the peers `used` have kernel objects, and the operations that lead there."""
    before = settled.used or frozenset[Network]()
    changed = [settled.peers[it] for it in before ^ used if it in settled.peers]
    settled.ties.fill(settled.peers.values())
    sharing = [settled.peers[subnet] for subnet in settled.ties.sharing(changed)]
    after = replace(settled, used=used)
    return after, plan(_kernel(after, sharing), _kernel(settled, sharing))


def _kernel(state: Settled, peers: Iterable[Peer]) -> list[Object]:
    return demand.objects(state.node, sorted(peers, key=lambda peer: in_order(peer.subnet)), state.used)


def _peer_len(node: Node, ties: Ties) -> int:
    """Return all that the programs' constants depend on of the peers, which have one length."""
    stack = node.stacks[0]
    return min(ties.lengths(stack.family), default=stack.pool.subnet_len)


def _contested(new: Iterable[Peer], others: Iterable[Peer]) -> bool:
    """Say whether a new peer has the VTEP MAC of another node."""
    stations = {peer.vtep_mac: peer.public_ip for peer in others if peer.vtep_mac}
    return any(stations.get(peer.vtep_mac, peer.public_ip) != peer.public_ip for peer in new if peer.vtep_mac)


def _give_slots(settled: Settled, touched: Collection[Network], new: Sequence[Peer], length: int) -> None:
    slots = settled.slots
    if slots is None:
        return
    taken = {subnet: slots.pop(subnet) for subnet in touched if subnet in slots}
    hashed = contents.of_length(contents.carried(new, settled.node.stacks[0].family), length)
    slots.update(contents.assign_slots(hashed, taken, settled.size, slots.values()))


def _objects(state: Settled, peers: Sequence[Peer]) -> list[Object]:
    """Return the objects of a few of the peers: where they share one, the last in order of subnets has it."""
    peers = sorted(peers, key=lambda peer: in_order(peer.subnet))
    found = demand.objects(state.node, peers, state.used)
    if state.slots is not None:
        found += contents.peer_entries([*contents.carried(peers, state.node.stacks[0].family)], state.slots)
    return found
