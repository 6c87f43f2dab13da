"""What an nftables expression has loaded into a register, and what a comparison with it says of the packet.

Integers that come from the packet are big endian in a register, those of the kernel (mark, conntrack's state,
ifindex) are in host byte order until a byteorder expression turns them. Numbers: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from flannel_ebpf.desired.proof.packets import Field, Version, width
from flannel_ebpf.desired.proof.ranges import NAME_LEN, NOTHING, Ranges, exactly, names_from, up_to, without
from flannel_ebpf.desired.proof.rules import Masked, Perhaps, Step, Within

EQ, NEQ, LT, LTE, GT, GTE = range(6)
LINK, NETWORK, TRANSPORT = range(3)

META_PROTOCOL, META_MARK, META_IIF, META_OIF, META_IIFNAME, META_OIFNAME = 1, 3, 4, 5, 6, 7
META_NFPROTO, META_L4PROTO, META_PKTTYPE = 15, 16, 19
CT_STATE, CT_STATUS = 0, 2
_STATUS_NAT = 0x10 | 0x20  # IPS_SRC_NAT, IPS_DST_NAT

_ETHERTYPE = {4: 0x0800, 6: 0x86DD}
_NFPROTO = {4: 2, 6: 10}

_HEADER: dict[Version, dict[tuple[int, int], Field]] = {
    4: {(6, 2): Field.FRAGMENT, (9, 1): Field.PROTOCOL, (12, 4): Field.SADDR, (16, 4): Field.DADDR},
    6: {(6, 1): Field.PROTOCOL, (8, 16): Field.SADDR, (24, 16): Field.DADDR},
}
_PORTS = {(0, 2): Field.SPORT, (2, 2): Field.DPORT}
_ONLY_IN = {(0, 1): ("icmp type", Field.ICMP_TYPE), (13, 1): ("tcp flags", Field.TCP_FLAGS)}
"""Octets of the transport header that are a field of one protocol."""
_VARYING_META = {0: "length", 20: "cpu", 24: "random"}
_VARYING_CT = {5: "expiration", 14: "packets", 15: "bytes", 16: "avgpkt"}
_META_FIELDS = {
    META_L4PROTO: Field.PROTOCOL,
    META_MARK: Field.MARK,
    META_PKTTYPE: Field.PACKET_TYPE,
    META_IIFNAME: Field.IIF,
    META_OIFNAME: Field.OIF,
    META_IIF: Field.IIF,
    META_OIF: Field.OIF,
}

ROUTE_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}
"""RTN_* of linux/rtnetlink.h, as the proof names them."""

_KEPT = 1024

NEVER: Step = Within(Field.PROTOCOL, NOTHING)
"""A test that no packet passes."""


@dataclass(frozen=True, slots=True)
class Part:
    """`length` octets of a field, from its octet `start` on; the field has `size` octets in the packet."""

    field: Field
    start: int
    length: int
    size: int


@dataclass(frozen=True, slots=True, eq=False)
class Load:
    """A register's content: (loaded & mask) ^ xor, as a number in the register's byte order.

    `parts` are the packet's fields of which it consists, None for octets that we know nothing of.
    `constant` is set where it does not depend on the packet, `addresses` where a map put one of these
    there. `index` marks an ifindex, `type_of` an address type as the routing tables tell it. `varies`: what
    we know nothing of may differ between packets of one flow, but for the bits in `steady`. Two loads are
    never equal: each is made once.
    """

    what: str
    length: int
    parts: tuple[Part | None, ...] = (None,)
    native: bool = False
    mask: int | None = None
    xor: int = 0
    constant: bytes | None = None
    addresses: Ranges | None = None
    index: bool = False
    type_of: Field | None = None
    varies: bool = False
    steady: int = 0

    @property
    def field(self) -> Field | None:
        """The one field that this is, whole and unaltered; None if it is anything else."""
        part = self.parts[0] if len(self.parts) == 1 else None
        whole = part is not None and part.start == 0 and part.length == part.size
        return part.field if part and whole and self.mask is None and not self.index else None

    def number(self, data: bytes) -> int:
        """Return octets as this register's number."""
        return int.from_bytes(data, sys.byteorder if self.native else "big")

    def perhaps(self) -> Step:
        """Return the test of this that nobody can decide."""
        looked_at = -1 if self.mask is None else self.mask
        return Perhaps(self.what, self.varies and bool(looked_at & ~self.steady))

    def masked(self, mask: bytes, xor: bytes) -> Load:
        """Return the register after another bitwise expression."""
        return _masked(self, self.number(mask), self.number(xor))


@lru_cache(_KEPT)
def _masked(load: Load, mask: int, xor: int) -> Load:
    old = (1 << 8 * load.length) - 1 if load.mask is None else load.mask
    return replace(load, mask=old & mask, xor=(load.xor & mask) ^ xor)


UNKNOWN_LOAD = Load("register", 4, varies=True)
ADDRESS_TYPES = {
    Field.SADDR: Load("fib saddr type", 4, native=True, type_of=Field.SADDR),
    Field.DADDR: Load("fib daddr type", 4, native=True, type_of=Field.DADDR),
}


@lru_cache(_KEPT)
def payload(version: Version, base: int, offset: int, length: int) -> Load:
    """Return what a payload expression loads."""
    what = f"@{('ll', 'nh', 'th')[base] if base <= TRANSPORT else base},{offset * 8},{length * 8}"
    if base == LINK and (offset, length) == (12, 2):
        return Load("ether type", 2, constant=_ETHERTYPE[version].to_bytes(2))
    if base == TRANSPORT and (offset, length) in _ONLY_IN:
        name, field = _ONLY_IN[offset, length]
        return Load(name, 1, (Part(field, 0, 1, 1),))
    header = _HEADER[version] if base == NETWORK else _PORTS if base == TRANSPORT else {}
    parts: list[Part | None] = []
    at, end = offset, offset + length
    while at < end:
        for (start, size), known_field in header.items():
            if start <= at < start + size:
                taken = min(end, start + size) - at
                parts.append(Part(known_field, at - start, taken, size))
                at += taken
                break
        else:
            known = [start for start, _ in header if at < start < end]
            at = min(known, default=end)
            parts.append(None)
    return Load(what, length, tuple(parts), varies=base != LINK)


@lru_cache(_KEPT)
def meta(version: Version, key: int) -> Load:
    """Return what a meta expression loads."""
    if key == META_NFPROTO:
        return Load("meta nfproto", 1, constant=bytes([_NFPROTO[version]]))
    if key == META_PROTOCOL:
        return Load("meta protocol", 2, constant=_ETHERTYPE[version].to_bytes(2))
    field = _META_FIELDS.get(key)
    if field is None:
        return Load(f"meta {_VARYING_META.get(key, key)}", 4, varies=key in _VARYING_META)
    if key in {META_IIFNAME, META_OIFNAME}:
        return Load("meta ifname", NAME_LEN, (Part(field, 0, NAME_LEN, NAME_LEN),))
    if key in {META_IIF, META_OIF}:
        return Load("meta ifindex", 4, (Part(field, 0, 4, 4),), native=True, index=True)
    length = width(field, version) // 8 if field in {Field.PROTOCOL, Field.MARK} else 1
    return Load(f"meta {key}", length, (Part(field, 0, length, length),), native=length > 1)


@lru_cache(_KEPT)
def conntrack(key: int) -> Load:
    """Return what a ct expression loads."""
    if key == CT_STATE:
        return Load("ct state", 4, (Part(Field.STATE, 0, 4, 4),), native=True)
    if key == CT_STATUS:
        return Load("ct status", 4, native=True, varies=True, steady=_STATUS_NAT)
    return Load(f"ct {_VARYING_CT.get(key, key)}", 4, varies=key in _VARYING_CT)


@lru_cache(_KEPT)
def compare(load: Load, operator: int, data: bytes, version: Version) -> Sequence[Step]:
    """Return the steps that let those packets pass for which the comparison holds."""
    if load.constant is not None:
        return [] if _holds(load.constant[: len(data)], operator, data) else [NEVER]
    only = load.parts[0] if len(load.parts) == 1 else None
    if only is None and len(load.parts) == 1:
        return [load.perhaps()]
    if only and only.field in {Field.IIF, Field.OIF}:
        return [_by_name(only.field, operator, data)]
    if only:
        return [_one(load, only, operator, data, version)]
    if operator == EQ:
        return _each(load, data, version)
    return [load.perhaps()]


def between(load: Load, first: bytes, last: bytes, version: Version, *, inverted: bool) -> Step:
    """Return the step of a range expression."""
    field = load.field
    if field is None or load.native or load.index:
        return load.perhaps()
    inside: Ranges = ((load.number(first), load.number(last)),)
    return Within(field, without(up_to(width(field, version)), inside) if inverted else inside)


def _holds(constant: bytes, operator: int, data: bytes) -> bool:
    order = (constant > data) - (constant < data)
    return {
        EQ: order == 0,
        NEQ: order != 0,
        LT: order < 0,
        LTE: order <= 0,
        GT: order > 0,
        GTE: order >= 0,
    }[operator]


def by_index(load: Load, operator: int, data: bytes, device: Callable[[int], Ranges | None]) -> Step:
    """Return the step of a comparison with an ifindex, which `device` turns into a name."""
    part, name = load.parts[0], device(load.number(data))
    if part is None or name is None or operator not in {EQ, NEQ}:
        return load.perhaps()
    return Within(part.field, name if operator == EQ else without(up_to(128), name))


def _by_name(field: Field, operator: int, data: bytes) -> Step:
    """Compare a name: whole names come with their zero octet, `name*` without, shorter than IFNAMSIZ."""
    whole = len(data) == NAME_LEN or data.endswith(b"\0")
    found = exactly(int.from_bytes(data.ljust(NAME_LEN, b"\0"))) if whole else names_from(data)
    if operator not in {EQ, NEQ}:
        return Perhaps("ifname")
    return Within(field, found if operator == EQ else without(up_to(128), found))


def _one(load: Load, part: Part, operator: int, data: bytes, version: Version) -> Step:
    """Compare with one field, or a part of it."""
    bits = width(part.field, version)
    shift = 8 * (part.size - part.start - part.length) if part.size * 8 == bits else 0
    number = load.number(data.ljust(load.length, b"\0")) ^ load.xor
    covered = (1 << 8 * load.length) - 1
    mask = covered if load.mask is None else load.mask
    if operator in {EQ, NEQ}:
        return _equal(part.field, bits, mask << shift, number << shift, inverted=operator == NEQ)
    if load.native or part.start or mask != covered or load.xor:
        return load.perhaps()
    low, high = number << shift, (number + 1 << shift) - 1
    first, last = {
        LT: (0, low - 1),
        LTE: (0, high),
        GT: (high + 1, (1 << bits) - 1),
        GTE: (low, (1 << bits) - 1),
    }[operator]
    return Within(part.field, ((first, last),) if first <= last else NOTHING)


def _equal(field: Field, bits: int, mask: int, value: int, *, inverted: bool) -> Step:
    """Return field & mask == value as ranges, if a prefix is asked for; `inverted`: !=."""
    every = (1 << bits) - 1
    if value & ~mask & every:
        return Within(field, up_to(bits) if inverted else NOTHING)
    free = every & ~mask
    if free & (free + 1):  # zeros in the mask are not the lowest bits
        return Masked(field, mask, value, inverted)
    found: Ranges = ((value, value | free),)
    return Within(field, without(up_to(bits), found) if inverted else found)


def _each(load: Load, data: bytes, version: Version) -> list[Step]:
    """Equality with several fields that lie side by side: nft takes neighbours together."""
    if load.mask is not None or load.xor:
        return [load.perhaps()]
    steps: list[Step] = []
    at = 0
    for part in load.parts:
        if part is None:
            return [*steps, load.perhaps()]
        one = Load(load.what, part.length, (part,))
        steps.append(_one(one, part, EQ, data[at : at + part.length], version))
        at += part.length
    return steps
