"""Follows packets through a base chain and tells what could be done to them.

Three-valued, as Diekmann, Hupel, Michaelis, Haslbeck and Carle do it (arXiv 1604.00206): a test lets all of a
set of packets pass, none, or perhaps some; what perhaps matches is taken both ways. So what is told is never
less than what the kernel does, and often more.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from flannel_ebpf.desired.proof import match
from flannel_ebpf.desired.proof.packets import INVALID_ONLY, Field, Packets, joined, simplified
from flannel_ebpf.desired.proof.ranges import Ranges
from flannel_ebpf.desired.proof.rules import (
    QUEUE,
    AddressType,
    Among,
    BaseChain,
    Chain,
    ChainName,
    Choose,
    Counted,
    Drop,
    Jump,
    Masked,
    Perhaps,
    Return,
    Rule,
    SetMark,
    Step,
    Touch,
    Translate,
    Verdict,
    Where,
    Within,
)

MOST_PIECES = 16
"""Packets that went different ways so far are kept apart in so many sets, then taken together."""
MOST_VISITS = 400_000
"""Rules looked at for one base chain; more, and nobody knows what it does."""
DEEPEST = 100


class TooMuch(Exception):
    """A base chain leads through more rules than can be followed."""


class Effect(NamedTuple):
    """What a rule could do to some packets.

    `each`: it does so to each packet, whatever it did to others of the flow. `to`: NAT's addresses, None:
    any; `nat` tells NAT from the rest.
    """

    where: Where
    packets: Packets
    what: str
    each: bool = False
    nat: bool = False
    to: Ranges | None = None


@dataclass(slots=True)
class _Trail:
    """What came of a jump: packets that came back, effects on the way, and all chains there."""

    back: list[Packets] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)
    chains: set[ChainName] = field(default_factory=set)


class Memory:
    """What came of each jump, for as long as the chains behind it stay the same."""

    def __init__(self) -> None:
        self._trails: dict[tuple[ChainName, Packets], _Trail] = {}

    def find(self, name: ChainName, packets: Packets) -> _Trail | None:
        """Return what came of these packets' jump to a chain, if that is known."""
        return self._trails.get((name, packets))

    def keep(self, name: ChainName, packets: Packets, trail: _Trail) -> None:
        """Remember it."""
        self._trails[name, packets] = trail

    def forget(self, chains: Collection[ChainName]) -> None:
        """Forget what led through any of these chains."""
        gone = set(chains)
        self._trails = {key: trail for key, trail in self._trails.items() if gone.isdisjoint(trail.chains)}


class Follower:
    """Takes sets of packets through chains.

    `chains` finds a chain by name, `kinds` has the addresses that the routing tables call "local" and so on.
    With `invalid_is_nobody`, what happens to packets in conntrack's state INVALID alone counts as no effect.
    """

    def __init__(
        self,
        chains: Callable[[ChainName], Chain],
        kinds: Mapping[str, Ranges],
        memory: Memory,
        *,
        invalid_is_nobody: bool,
    ) -> None:
        self._chains = chains
        self._kinds = kinds
        self._memory = memory
        self._invalid_is_nobody = invalid_is_nobody
        self._visits = 0
        self._tell: Callable[[Effect], None] = lambda effect: None

    def through(self, base: BaseChain, packets: Packets, tell: Callable[[Effect], None]) -> None:
        """Tell all that the chain could do to these packets, until `tell` raises an exception.

        Raises TooMuch.
        """
        self._visits, self._tell = 0, tell
        trail = _Trail()
        self._chain(base.name, packets, trail, 0)
        if base.drops:
            for piece in trail.back:
                self._note(Effect(Where(base.name, None), piece, "policy drop"), trail)

    def _chain(self, name: ChainName, packets: Packets, trail: _Trail, depth: int) -> None:
        """Take packets through a chain; those that come back, by its end or a return, are in `trail.back`."""
        if depth > DEEPEST:
            raise TooMuch
        trail.chains.add(name)
        pieces = [packets]
        for rule in self._chains(name).rules:
            meeting, others = _apart(pieces, rule)
            if not meeting:
                continue
            self._visits += len(meeting)
            if self._visits > MOST_VISITS:
                raise TooMuch
            on = self._rule(Where(name, rule), rule, meeting, trail, depth)
            if on is not meeting:
                pieces = simplified(others + on, MOST_PIECES)
                if not pieces:
                    break
        trail.back = simplified(trail.back + pieces, MOST_PIECES)

    def _rule(
        self, where: Where, rule: Rule, pieces: list[Packets], trail: _Trail, depth: int
    ) -> list[Packets]:
        """Return the packets that go on behind the rule, `pieces` itself if all do."""
        left: list[Packets] = []
        same = True
        for piece in pieces:
            hit, misses = self._match(where, rule, piece, trail)
            if hit is None:
                left.append(piece)
                continue
            on = self._decide(where, rule.verdict, hit, trail, depth)
            if on == [hit] and hit.judged == piece.judged:
                left.append(piece)
            else:
                same = False
                left += misses + on
        return pieces if same else left

    def _match(
        self, where: Where, rule: Rule, piece: Packets, trail: _Trail
    ) -> tuple[Packets | None, list[Packets]]:
        """Return the packets that come to a rule's verdict, and those that do not."""
        misses: list[Packets] = []
        passing = piece
        undecided: Packets | None = None
        for step in rule.steps:
            inside, outside = self._step(where, step, passing, trail)
            # Of what perhaps passed, all is among those that do not; what fails later need not be told again.
            if outside is not None and (undecided is None or outside.judged != undecided.judged):
                misses.append(outside)
            if outside is not None and outside.values == passing.values:
                undecided = outside
            if inside is None:
                return None, misses
            passing = inside
        return passing, misses

    def _step(self, where: Where, step: Step, piece: Packets, trail: _Trail) -> match.Match:
        if isinstance(step, Within):
            return match.within(piece, step)
        match step:
            case Masked():
                return match.masked(piece, step)
            case AddressType():
                return match.address_type(piece, step, self._kinds)
            case Among():
                return match.among(piece, step)
            case Perhaps(_, varies):
                return (piece.judged_one_by_one() if varies else piece,) * 2
        self._act(where, step, piece, trail)
        return (piece.judged_one_by_one(),) * 2 if isinstance(step, Counted) else (piece, None)

    def _act(self, where: Where, step: Step, piece: Packets, trail: _Trail) -> None:
        match step:
            case Touch(what, each):
                self._note(Effect(where, piece, what, each=each), trail)
            case Counted(what):
                self._note(Effect(where, piece, what, each=True), trail)
            case SetMark(mask, xor):
                if match.changes_mark(piece, mask, xor):
                    self._note(Effect(where, piece, "mark"), trail)
            case Translate(what, to):
                self._note(Effect(where, piece, what, nat=True, to=to), trail)

    def _decide(
        self, where: Where, verdict: Verdict, hit: Packets, trail: _Trail, depth: int
    ) -> list[Packets]:
        """Return those of the rule's packets that go on behind it."""
        match verdict:
            case None:
                return [hit]
            case Drop(what):
                self._note(Effect(where, hit, what, each=what == QUEUE), trail)
            case Return():
                trail.back.append(hit)
            case Jump(chain, goes_back):
                after = self._jump(ChainName(where.chain.table, chain), hit, trail, depth + 1)
                if goes_back:
                    return after
                trail.back += after
            case Choose():
                return self._choose(where, verdict, hit, trail, depth)
            case _:  # Accept
                pass
        return []

    def _jump(self, name: ChainName, hit: Packets, trail: _Trail, depth: int) -> list[Packets]:
        known = self._memory.find(name, hit)
        if known is None:
            known = _Trail()
            self._chain(name, hit, known, depth)
            self._memory.keep(name, hit, known)
        else:
            for effect in known.effects:
                self._tell(effect)
        trail.effects += known.effects
        trail.chains |= known.chains
        return known.back

    def _choose(self, where: Where, choice: Choose, hit: Packets, trail: _Trail, depth: int) -> list[Packets]:
        on: list[Packets] = []
        rest = [hit]
        for element, verdict in choice.elements:
            chosen = match.restricted(hit, choice.fields, element)
            if chosen is not None and rest:
                on += self._decide(where, verdict, chosen, trail, depth)
                rest = match.rest(rest, choice, element)
        for piece in rest:
            on += self._decide(where, choice.otherwise, piece, trail, depth)
        return [joined(on)] if len(on) > MOST_PIECES else on

    def _note(self, effect: Effect, trail: _Trail) -> None:
        if not (self._invalid_is_nobody and effect.packets[Field.STATE] == INVALID_ONLY):
            trail.effects.append(effect)
            self._tell(effect)


def _apart(pieces: list[Packets], rule: Rule) -> tuple[list[Packets], list[Packets]]:
    """Return the pieces that a rule may concern, and those that certainly pass it by."""
    if not rule.needs:
        return pieces, []
    at, first, last = rule.needs
    meeting, others = [], []
    for piece in pieces:
        mine = piece.values[at]
        if mine is None or (mine[0][0] <= last and first <= mine[-1][1]):
            meeting.append(piece)
        else:
            others.append(piece)
    return meeting, others
