"""Rules as the proof sees them, whichever tool wrote them: steps in order, then a verdict.

A rule's steps are taken one after the other, as nftables takes its expressions: a test lets a part of the
packets go on, an act happens to those that came so far. What has no effect on a packet (counter, log,
comment) is no step, and a rule without any effect is no rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Literal, NamedTuple

from flannel_ebpf.desired.proof.packets import Field
from flannel_ebpf.desired.proof.ranges import Ranges, both


@dataclass(frozen=True, slots=True)
class Within:
    """Lets packets pass whose field is in `ranges`; a negated test holds the complement."""

    field: Field
    ranges: Ranges


@dataclass(frozen=True, slots=True)
class Masked:
    """Lets packets pass whose field, under the mask, has this value (or any other, with `inverted`)."""

    field: Field
    mask: int
    value: int
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class AddressType:
    """Lets packets pass whose address is of one of these kinds, as the routing tables say."""

    field: Field
    kinds: frozenset[str]
    inverted: bool = False


@dataclass(frozen=True, slots=True)
class Among:
    """Lets packets pass whose fields together are one of the elements (a set of concatenations).

    A field that is None is something we know nothing of. With `unsure`, elements may have gone.
    """

    fields: tuple[Field | None, ...]
    elements: tuple[tuple[Ranges, ...], ...]
    inverted: bool = False
    unsure: bool = False


@dataclass(frozen=True, slots=True)
class Perhaps:
    """A test that nobody here can decide, and that changes nothing.

    `varies`: packets of one flow may differ in it.
    """

    what: str
    varies: bool = False


@dataclass(frozen=True, slots=True)
class SetMark:
    """Sets the mark to (mark & mask) ^ xor; None: to what cannot be told."""

    mask: int | None
    xor: int


@dataclass(frozen=True, slots=True)
class Touch:
    """Something is done to the packet, or remembered of it: whoever takes another way makes a difference.

    `each`: it makes one even if the kernel has carried packets of the same flow before.
    """

    what: str
    each: bool = True


@dataclass(frozen=True, slots=True)
class Counted:
    """A limit, quota or the like: who takes another way is not counted. Counts for logs alone are no step."""

    what: str


@dataclass(frozen=True, slots=True)
class Translate:
    """NAT. `to` are the addresses that it may put into the packet, None: any; a host's own are left out."""

    what: str
    to: Ranges | None


Step = Within | Masked | AddressType | Among | Perhaps | SetMark | Touch | Counted | Translate


@dataclass(frozen=True, slots=True)
class Accept:
    """The packet has passed this base chain."""


QUEUE = "queue"


@dataclass(frozen=True, slots=True)
class Drop:
    """The packet ends here; `what` is "drop", "reject", QUEUE or what else takes it."""

    what: str = "drop"


@dataclass(frozen=True, slots=True)
class Return:
    """On behind the rule that jumped here; in a base chain its policy."""


@dataclass(frozen=True, slots=True)
class Jump:
    """To another chain of the table; `back`: and behind this rule from its end."""

    chain: str
    back: bool = True


@dataclass(frozen=True, slots=True)
class Choose:
    """A verdict map: the element that has the packet's fields says what to do. Without one, the rule is left.

    `otherwise` is the verdict of the catch-all element, if any.
    """

    fields: tuple[Field | None, ...]
    elements: tuple[tuple[tuple[Ranges, ...], Verdict], ...]
    otherwise: Verdict = None
    unsure: bool = False


Verdict = Accept | Drop | Return | Jump | Choose | None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `handle` is the kernel's number of it, for legacy tables its place in the chain from 1.

    `comment` is what its author wrote. `needs`: packets whose field has no value between these two pass by;
    it only saves time.
    """

    steps: tuple[Step, ...]
    verdict: Verdict = None
    handle: int = 0
    comment: str = ""
    needs: tuple[Field, int, int] | None = None


def effective(steps: Sequence[Step], verdict: Verdict, handle: int = 0, comment: str = "") -> Rule | None:
    """Return the rule, None when it has no effect on any packet; what stands behind its last effect goes."""
    steps = _merged(steps)
    while verdict is None and steps and not isinstance(steps[-1], SetMark | Touch | Translate):
        steps.pop()
    return Rule(tuple(steps), verdict, handle, comment, _needs(steps)) if steps or verdict else None


def _merged(steps: Sequence[Step]) -> list[Step]:
    """Return the steps with neighbours that ask for the same field as one: nft writes a range as two."""
    found: list[Step] = []
    for step in steps:
        last = found[-1] if found else None
        if isinstance(step, Within) and isinstance(last, Within) and step.field == last.field:
            found[-1] = Within(step.field, both(step.ranges, last.ranges))
        else:
            found.append(step)
    return found


def _needs(steps: Sequence[Step]) -> tuple[Field, int, int] | None:
    """Return the field that tells soonest that a packet passes a rule by: an address before all others."""
    found: tuple[Field, int, int] | None = None
    for step in steps:
        if isinstance(step, Within) and step.ranges and step.field != Field.ICMP_TYPE:
            if found is None or step.field < found[0]:
                found = (step.field, step.ranges[0][0], step.ranges[-1][1])
        elif isinstance(step, SetMark | Touch | Counted | Translate):
            break
    return found


class Hook(IntEnum):
    """Where packets meet base chains; numbers are ours."""

    INGRESS = 0
    """Of a device, behind tc; EGRESS: of a device, before tc."""
    EGRESS = 1
    BRIDGE_PREROUTING = 2
    BRIDGE_INPUT = 3
    BRIDGE_FORWARD = 4
    BRIDGE_OUTPUT = 5
    BRIDGE_POSTROUTING = 6
    PREROUTING = 7
    INPUT = 8
    FORWARD = 9
    OUTPUT = 10
    POSTROUTING = 11


Kind = Literal["ip", "ip6", "inet", "bridge", "netdev", "legacy"]


@dataclass(frozen=True, slots=True, order=True)
class TableName:
    """A table: its family as nft names it, or "legacy" for one of iptables-legacy, and its name."""

    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, order=True)
class ChainName:
    """A chain in a table."""

    table: TableName
    name: str

    def __str__(self) -> str:
        return f"{self.table} {self.name}"


@dataclass(frozen=True, slots=True)
class BaseChain:
    """A chain that hangs on a hook. `devices` are the names' ranges of a device's hook, None elsewhere."""

    name: ChainName
    hook: Hook
    priority: int
    drops: bool = False
    """Policy."""
    translates: bool = False
    """A nat chain."""
    devices: Ranges | None = None


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain's rules that have any effect."""

    name: ChainName
    rules: Sequence[Rule] = field(default_factory=tuple)


class Where(NamedTuple):
    """A rule in its chain; None: the chain's policy."""

    chain: ChainName
    rule: Rule | None
