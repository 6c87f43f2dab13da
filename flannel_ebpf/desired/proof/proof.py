"""The proof: the pods' addresses that no rule can concern, and for every other address a rule that might."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import partial

from flannel_ebpf.desired.proof.follow import Effect, Follower, Memory, TooMuch
from flannel_ebpf.desired.proof.packets import (
    FLAGS_CARRIED,
    INVALID_ONLY,
    OPENING,
    TCP,
    Field,
    Packets,
    all_of,
    anything,
)
from flannel_ebpf.desired.proof.passages import Facts, meeting, passages
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges, both, either, exactly, names, without
from flannel_ebpf.desired.proof.rules import QUEUE, BaseChain, Chain, ChainName, Hook, Where
from flannel_ebpf.desired.proof.words import sentence


class Level(IntEnum):
    """How a pod's packets are carried."""

    FREE = 0
    """Past the kernel, each of them: no rule can concern them."""
    FLOWS = 1
    """By flow, once the kernel has carried a packet of it unchanged."""
    KERNEL = 2
    """By the kernel: rules judge packets one by one."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Addresses that are not free, and why: a rule in words, or what else stands there."""

    addresses: Ranges
    level: Level
    why: str


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found. `free` are addresses of pods that nothing concerns; the guards share the others.

    An address is in one guard only, of the highest level that it has.
    """

    free: Ranges = NOTHING
    guards: tuple[Guard, ...] = field(default_factory=tuple)

    def of_level(self, level: Level) -> Ranges:
        """Return all addresses of this level."""
        found = self.free if level == Level.FREE else NOTHING
        for guard in self.guards:
            if guard.level == level:
                found = either(found, guard.addresses)
        return found


class _Settled(Exception):
    """Nothing that could still be found in a base chain would add a guard."""


def prove(
    bases: Sequence[BaseChain],
    chains: Callable[[ChainName], Chain],
    facts: Facts,
    standing: Iterable[Guard] = (),
    memory: Memory | None = None,
) -> Proof:
    """Return which pods may go past all these base chains, with what `standing` guards in any case.

    `chains` is asked for a chain only when packets might come to it. `memory` makes the next proof quick,
    if it has forgotten the chains that changed; it is of use for the same facts only.
    """
    guards = _Guards(facts)
    follower = Follower(chains, facts.kinds, memory or Memory(), invalid_is_nobody=facts.invalid_is_nobody)
    for guard in standing:
        guards.add(guard.addresses, guard.level, guard.why)
    for base, packets, tell in _ways(bases, facts, guards):
        try:
            follower.through(base, packets, tell)
        except _Settled:
            continue
        except TooMuch:
            guards.add(facts.pods, Level.KERNEL, f"{base.name}: more rules than can be followed")
    return guards.proof()


def _ways(
    bases: Sequence[BaseChain], facts: Facts, guards: _Guards
) -> Iterator[tuple[BaseChain, Packets, Callable[[Effect], None]]]:
    """Yield packets in base chains, and who is to be told what happens to them there.

    First NAT of packets that are no overlay's, because it could mix them with overlay traffic: pods whose
    packets for elsewhere are translated into the overlay (services) could have a connection that looks there
    like a direct one; a reply of a pod to whose address somebody's packets are translated (published ports)
    would leave untranslated. Then all packets that are carried. NAT chains see but the first packets of a
    connection, and so matter for pods only that may be free. Ends as soon as nothing can add a guard.
    """
    everybody = anything(facts.version)
    elsewhere = without(all_of(Field.DADDR, facts.version), facts.others)
    leaving = everybody.having(Field.DADDR, elsewhere).having(Field.SADDR, facts.pods)
    for base in bases:
        if base.translates and guards.free:
            if base.hook == Hook.PREROUTING and facts.gateways:
                yield base, leaving.having(Field.IIF, names(facts.gateways)), guards.into_the_overlay
            yield base, everybody, guards.onto_a_pod
    for passage in passages(facts):
        for base in bases:
            packets = meeting(passage, base)
            if not guards.open:
                return
            if packets is not None and (guards.free or not base.translates):
                yield base, packets, partial(guards.on_the_way, passage.pod)


class _Guards:
    """Collects guards. Who tells it effects hears by _Settled that more of the kind cannot matter.

    `free` pods have no guard, `open` ones none of the highest level.
    """

    def __init__(self, facts: Facts) -> None:
        pods = without(facts.pods, facts.kinds.get("local", NOTHING))
        self.free = pods if facts.stateless else NOTHING
        self._pods = pods
        self.open = pods
        self._found: list[Guard] = []
        self._others = facts.others

    def proof(self) -> Proof:
        """Return what was collected."""
        kernel = without(self._pods, self.open)
        narrowed = (
            guard
            if guard.level == Level.KERNEL
            else replace(guard, addresses=without(guard.addresses, kernel))
            for guard in self._found
        )
        return Proof(self.free, tuple(guard for guard in narrowed if guard.addresses))

    def add(self, addresses: Ranges, level: Level, why: str | Where, what: str = "") -> None:
        """Guard these addresses."""
        new = both(addresses, self.free if level == Level.FLOWS else self.open)
        if new:
            self._found.append(Guard(new, level, why if isinstance(why, str) else sentence(why, what)))
            self.free = without(self.free, new)
            if level == Level.KERNEL:
                self.open = without(self.open, new)

    def on_the_way(self, pod: Field | None, effect: Effect) -> None:
        """Guard the pods of carried packets to which anything happens; of tunnel packets, all."""
        level = Level.KERNEL if _judges_each(effect) else Level.FLOWS
        if pod is None:
            self.add(self._pods, level, effect.where, f"{effect.what} of tunnel packets")
        else:
            self.add(effect.packets[pod] or NOTHING, level, effect.where, effect.what)
        if not self.open:
            raise _Settled

    def into_the_overlay(self, effect: Effect) -> None:
        """Guard the pods whose packets a translation takes into the overlay."""
        if effect.nat and (effect.to is None or both(effect.to, self._others)):
            pods = effect.packets[Field.SADDR] or NOTHING
            self.add(pods, Level.FLOWS, effect.where, "nat into the overlay")
        if not self.free:
            raise _Settled

    def onto_a_pod(self, effect: Effect) -> None:
        """Guard the pods whose address a translation puts into packets."""
        if effect.nat and effect.to is None:
            self.add(self._pods, Level.FLOWS, effect.where, "nat to addresses that cannot be told")
        elif effect.nat and effect.to:
            self.add(effect.to, Level.FLOWS, effect.where, "nat to the pod's address")
        if not self.free:
            raise _Settled


def _judges_each(effect: Effect) -> bool:
    """Say whether packets of a flow that the kernel has carried may yet be treated otherwise than those.

    The kernel carries TCP packets that open or end a connection in any case, and what is carried by flow is
    not INVALID.
    """
    protocols, states = effect.packets[Field.PROTOCOL] or NOTHING, effect.packets[Field.STATE]
    if states == INVALID_ONLY:
        return False
    flags = both(effect.packets[Field.TCP_FLAGS] or NOTHING, FLAGS_CARRIED)
    is_tcp = protocols == exactly(TCP)
    if is_tcp and not flags:
        return False
    opening = states is not None and not without(states, OPENING)
    if opening and (is_tcp or effect.what == QUEUE):  # whoever is asked is asked for the connection
        return False
    some_flags = bool(both(protocols, exactly(TCP))) and flags not in {NOTHING, FLAGS_CARRIED}
    return not effect.nat and (effect.each or effect.packets.judged or some_flags)
