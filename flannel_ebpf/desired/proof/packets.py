"""A set of packets at a hook: for each field of a packet the values that it may have.

Every combination of the values counts as possible, so such a set is often larger than the packets that can
really come by. It is never smaller: that is what the proof rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

from flannel_ebpf.desired.proof.ranges import Ranges, both, either, exactly, up_to, without

Version = Literal[4, 6]


class Field(IntEnum):
    """What rules look at and we know something of; the rest of a packet may be anything."""

    SADDR = 0
    DADDR = 1
    PROTOCOL = 2
    SPORT = 3
    """The first two octets behind the IP header, whatever the protocol makes of them; DPORT: the next two."""
    DPORT = 4
    ICMP_TYPE = 5
    TCP_FLAGS = 6
    """The octet of FIN to CWR."""
    STATE = 7
    """Conntrack's state as one of the STATE_* bits."""
    FRAGMENT = 8
    """IPv4's flags and fragment offset."""
    PACKET_TYPE = 9
    """skb->pkt_type."""
    MARK = 10
    IIF = 11
    """Device names as `ranges.name_number` makes them."""
    OIF = 12


WIDTH = {
    Field.SADDR: 32,
    Field.DADDR: 32,
    Field.PROTOCOL: 8,
    Field.SPORT: 16,
    Field.DPORT: 16,
    Field.ICMP_TYPE: 8,
    Field.TCP_FLAGS: 8,
    Field.STATE: 32,
    Field.FRAGMENT: 16,
    Field.PACKET_TYPE: 32,
    Field.MARK: 32,
    Field.IIF: 128,
    Field.OIF: 128,
}
"""Bits of each field; an IPv6 address has 128."""

STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW, STATE_UNTRACKED = 1, 2, 4, 8, 64
"""What nft's `ct state` compares (NF_CT_STATE_*_BIT); iptables' conntrack match has the same first four."""

INVALID_ONLY = exactly(STATE_INVALID)
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_PACKET_HOST = 0
OPENING = exactly(STATE_NEW, STATE_RELATED, STATE_INVALID)
"""States that TCP packets have as long as no answer came."""
_FIN, _SYN, _RST, _ACK = 0x01, 0x02, 0x04, 0x10
FLAGS_CARRIED = exactly(*(flags for flags in range(256) if flags & (_FIN | _SYN | _RST | _ACK) == _ACK))
"""TCP flags of packets in the middle of a connection, which are carried by flow."""
_DONT_FRAGMENT = 0x4000


@dataclass(frozen=True, slots=True)
class Packets:
    """A set of packets of one IP version.

    `values` is in the order of Field; None: not known, a rule may or may not match. `judged`: these are
    there by what differs from packet to packet of one flow.
    """

    version: Version
    values: tuple[Ranges | None, ...]
    judged: bool = False

    def __getitem__(self, field: Field) -> Ranges | None:
        return self.values[field]

    def having(self, field: Field, ranges: Ranges | None) -> Packets:
        """Return the same packets with another set of values for one field."""
        values = self.values
        return Packets(self.version, (*values[:field], ranges, *values[field + 1 :]), self.judged)

    def judged_one_by_one(self) -> Packets:
        """Return the same packets, told apart by more than their flow."""
        return self if self.judged else Packets(self.version, self.values, judged=True)


def width(field: Field, version: Version) -> int:
    """Return how many bits a field has."""
    return 128 if version == 6 and field in {Field.SADDR, Field.DADDR} else WIDTH[field]


def all_of(field: Field, version: Version) -> Ranges:
    """Return every value that a field can have."""
    return up_to(width(field, version))


def anything(version: Version) -> Packets:
    """Return all packets that netfilter can meet, translated and marked ones and everybody's included."""
    known = [all_of(field, version) for field in Field]
    unknown = {Field.STATE, Field.FRAGMENT, Field.PACKET_TYPE}
    return Packets(version, tuple(None if field in unknown else known[field] for field in Field))


def carried(version: Version, saddr: Ranges, daddr: Ranges, states: Sequence[int], mark: Ranges) -> Packets:
    """Return the packets between these addresses that our programs carry: TCP, UDP and ICMP in one piece.

    Devices are nowhere (""): a hook sets its own.
    """
    protocols = exactly(TCP, UDP, ICMP if version == 4 else ICMPV6)
    nowhere = exactly(0)
    found = {
        Field.SADDR: saddr,
        Field.DADDR: daddr,
        Field.PROTOCOL: protocols,
        Field.STATE: exactly(*states),
        Field.FRAGMENT: exactly(0, _DONT_FRAGMENT),
        Field.PACKET_TYPE: exactly(_PACKET_HOST),
        Field.MARK: mark,
        Field.IIF: nowhere,
        Field.OIF: nowhere,
    }
    return Packets(version, tuple(found.get(field, all_of(field, version)) for field in Field))


def split(packets: Packets, field: Field, ranges: Ranges) -> tuple[Packets | None, Packets | None]:
    """Return the packets whose field is in `ranges`, and those whose field is not; None: there are none."""
    mine = packets.values[field]
    if mine is None:
        return packets, packets
    inside = both(mine, ranges)
    if not inside:
        return None, packets
    if inside == mine:
        return packets, None
    return packets.having(field, inside), packets.having(field, without(mine, ranges))


def joined(pieces: Sequence[Packets]) -> Packets:
    """Return the smallest set that has all packets of these."""
    first = pieces[0]
    values = list(first.values)
    for piece in pieces[1:]:
        for field, ranges in enumerate(piece.values):
            mine = values[field]
            values[field] = None if mine is None or ranges is None else either(mine, ranges)
    return Packets(first.version, tuple(values), any(piece.judged for piece in pieces))


def simplified(pieces: list[Packets], most: int) -> list[Packets]:
    """Return pieces with the same packets at least: equal ones once, and more than `most` as one."""
    if len(pieces) < 2:
        return pieces
    pieces = list(dict.fromkeys(pieces))
    return [joined(pieces)] if len(pieces) > most else pieces
