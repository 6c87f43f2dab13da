"""xtables' matches as they lie in the kernel: of iptables-legacy, and of iptables-nft beside nftables.

A match that is not known here may count or remember: it touches. Structures: linux/netfilter/xt_*.h,
linux/netfilter_ipv4/ipt_*.h; integers in host byte order, addresses and conntrack's ports in network byte
order.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from flannel_ebpf.desired.proof.packets import ICMP, ICMPV6, Field, Version, all_of
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges, exactly, of, up_to, without
from flannel_ebpf.desired.proof.rules import AddressType, Counted, Masked, Perhaps, Step, Touch, Within

_PORT_SOURCE, _PORT_DESTINATION = 0, 1
_INV_SOURCE, _INV_DESTINATION, _INV_FLAGS, _INV_OPTION = 1, 2, 4, 8
_CONNTRACK_STATE, _CONNTRACK_EXPIRES, _CONNTRACK_ALIAS = 1 << 0, 1 << 7, 1 << 13
_CONNTRACK_FLAGS_AT = 146
_REAL_STATES = 0xF
_UNTRACKED, _OUR_UNTRACKED = 1 << 8, 64
_ANY_ICMP = 0xFF
_TYPES = {1: "unicast", 2: "local", 3: "broadcast", 4: "anycast", 5: "multicast"}
_TYPE_BITS = range(16)
_LIMIT_IFACE = 0x4 | 0x8
_RANGE_SOURCE, _RANGE_DESTINATION, _RANGE_INV_SOURCE, _RANGE_INV_DESTINATION = 0x01, 0x02, 0x10, 0x20
_SET_COUNTERS_FROM = 3
_CONNLABEL_SET = 1 << 1

_STEADY = {
    *("802_3", "among", "arp", "cgroup", "cluster", "connmark", "devgroup", "helper", "ip", "ip6", "mac"),
    *("mark_m", "osf", "owner", "physdev", "policy", "realm", "rpfilter", "socket", "stp", "tcpmss", "time"),
    "vlan",
}
"""Matches that look at what is unknown to us, but the same for all packets of a flow, and change nothing."""

_VARYING = {
    *("ah", "bpf", "connbytes", "cpu", "dccp", "dscp", "ecn", "esp", "eui64", "frag", "hbh", "hl", "ipcomp"),
    *("ipv6header", "l2tp", "length", "mh", "rt", "sctp", "srh", "string", "tos", "ttl", "u32"),
}
"""Matches that look at what packets of one flow may differ in."""

_COUNTING = {"limit", "quota", "connlimit", "statistic"}
"""Matches whose answer depends on the packets that this rule saw before, or on chance."""

_SHARED = {"hashlimit", "nfacct", "rateest", "recent"}
"""Matches that count in tables which other rules may ask."""


def decode(name: str, revision: int, info: bytes, version: Version) -> list[Step]:
    """Return the steps of a match."""
    if name in _STEADY | _VARYING:
        return [Perhaps(name, name in _VARYING)]
    if name in _COUNTING:
        return [Counted(name)]
    if name in _SHARED:
        return [Touch(name), Perhaps(name, varies=True)]
    known = _KNOWN.get(name)
    try:
        return known(revision, info, version) if known else [Touch(f"match {name}")]
    except struct.error:  # a structure of another size than any we know
        return [Touch(f"match {name}")]


def _ports(field: Field, first: int, last: int, *, inverted: bool) -> list[Step]:
    """Return the test of a range of ports; all ports are no test."""
    inside: Ranges = ((first, last),)
    if first == 0 and last == 0xFFFF and not inverted:
        return []
    return [Within(field, without(up_to(16), inside) if inverted else inside)]


def _tcp(_revision: int, info: bytes, _version: Version) -> list[Step]:
    source, source_end, target, target_end, option, mask, flags, inverted = struct.unpack_from(
        "=HHHHBBBB", info
    )
    steps = _ports(Field.SPORT, source, source_end, inverted=bool(inverted & _INV_SOURCE))
    steps += _ports(Field.DPORT, target, target_end, inverted=bool(inverted & _INV_DESTINATION))
    if mask or flags or inverted & _INV_FLAGS:
        steps.append(Masked(Field.TCP_FLAGS, mask, flags, bool(inverted & _INV_FLAGS)))
    if option or inverted & _INV_OPTION:
        steps.append(Perhaps("tcp option", varies=True))
    return steps


def _udp(_revision: int, info: bytes, _version: Version) -> list[Step]:
    source, source_end, target, target_end, inverted = struct.unpack_from("=HHHHB", info)
    steps = _ports(Field.SPORT, source, source_end, inverted=bool(inverted & _INV_SOURCE))
    return steps + _ports(Field.DPORT, target, target_end, inverted=bool(inverted & _INV_DESTINATION))


def _multiport(revision: int, info: bytes, _version: Version) -> list[Step]:
    if revision != 1:
        return [Perhaps("multiport")]
    kind, count = info[0], info[1]
    ports = struct.unpack_from("=15H", info, 2)[:count]
    more = info[32 : 32 + count]  # 1: this port begins a range that the next one ends
    pairs = []
    for at, port in enumerate(ports):
        if more[at]:
            pairs.append((port, ports[at + 1]))
        elif not (at and more[at - 1]):
            pairs.append((port, port))
    if kind not in {_PORT_SOURCE, _PORT_DESTINATION}:
        return [Perhaps("multiport")]
    inside = of(pairs)
    field = Field.SPORT if kind == _PORT_SOURCE else Field.DPORT
    return [Within(field, without(up_to(16), inside) if info[47] else inside)]


def _conntrack(revision: int, info: bytes, _version: Version) -> list[Step]:
    flags, inverted = struct.unpack_from("=HH", info, _CONNTRACK_FLAGS_AT)
    states = (
        info[_CONNTRACK_FLAGS_AT + 4]
        if revision == 1
        else struct.unpack_from("=H", info, _CONNTRACK_FLAGS_AT + 4)[0]
    )
    steps: list[Step] = []
    if flags & _CONNTRACK_STATE:
        steps.append(_states(states, inverted=bool(inverted & _CONNTRACK_STATE)))
    if flags & ~(_CONNTRACK_STATE | _CONNTRACK_ALIAS):
        steps.append(Perhaps("conntrack", varies=bool(flags & _CONNTRACK_EXPIRES)))
    return steps


def _states(states: int, *, inverted: bool) -> Step:
    """Return the test of conntrack's states; SNAT and DNAT (1 << 6, 1 << 7) carried packets never have."""
    ours = states & _REAL_STATES | (_OUR_UNTRACKED if states & _UNTRACKED else 0)
    inside = exactly(*(1 << bit for bit in range(8) if ours >> bit & 1))
    return Within(Field.STATE, without(all_of(Field.STATE, 4), inside) if inverted else inside)


def _state(_revision: int, info: bytes, _version: Version) -> list[Step]:
    return [_states(struct.unpack_from("=I", info)[0], inverted=False)]


def _mark(revision: int, info: bytes, _version: Version) -> list[Step]:
    if revision != 1:
        return [Perhaps("mark")]
    mark, mask, inverted = struct.unpack_from("=IIB", info)
    return [Masked(Field.MARK, mask, mark, bool(inverted))]


def _addrtype(revision: int, info: bytes, _version: Version) -> list[Step]:
    if revision == 1:
        source, target, flags = struct.unpack_from("=HHI", info)
        inverted_source, inverted_target = flags & 1, flags & 2
    else:
        source, target, inverted_source, inverted_target = struct.unpack_from("=HHII", info)
        flags = 0
    if flags & _LIMIT_IFACE:
        return [Perhaps("addrtype of one device")]
    steps: list[Step] = []
    for field, kinds, inverted in (
        (Field.SADDR, source, inverted_source),
        (Field.DADDR, target, inverted_target),
    ):
        if kinds:
            found = frozenset(_TYPES.get(bit, "other") for bit in _TYPE_BITS if kinds >> bit & 1)
            steps.append(AddressType(field, found, bool(inverted)))
    return steps


def _icmp(_revision: int, info: bytes, version: Version) -> list[Step]:
    kind, first, last, inverted = struct.unpack_from("=BBBB", info)
    protocol = Within(Field.PROTOCOL, exactly(ICMP if version == 4 else ICMPV6))
    whole = (first, last) == (0, 0xFF)
    if kind == _ANY_ICMP and version == 4:
        return [protocol, Perhaps("icmp")] if inverted else [protocol]
    if whole and not inverted:
        return [protocol, Within(Field.ICMP_TYPE, exactly(kind))]
    return [protocol, Perhaps("icmp")]


def _packet_type(_revision: int, info: bytes, _version: Version) -> list[Step]:
    kind, inverted = struct.unpack_from("=ii", info)
    inside = exactly(kind)
    return [Within(Field.PACKET_TYPE, without(all_of(Field.PACKET_TYPE, 4), inside) if inverted else inside)]


def _iprange(revision: int, info: bytes, version: Version) -> list[Step]:
    if revision != 1:
        return [Perhaps("iprange")]
    size = 4 if version == 4 else 16
    low, high, low_target, high_target = (int.from_bytes(info[at : at + size]) for at in (0, 16, 32, 48))
    flags = info[64]
    steps: list[Step] = []
    for field, asked, first, last, inverted in (
        (Field.SADDR, _RANGE_SOURCE, low, high, _RANGE_INV_SOURCE),
        (Field.DADDR, _RANGE_DESTINATION, low_target, high_target, _RANGE_INV_DESTINATION),
    ):
        if flags & asked:
            inside: Ranges = ((first, last),) if first <= last else NOTHING
            every = all_of(field, version)
            steps.append(Within(field, without(every, inside) if flags & inverted else inside))
    return steps


def _set(revision: int, info: bytes, _version: Version) -> list[Step]:
    """Take an ipset for what it may become: its content makes no event, and its counters may decide."""
    if revision >= _SET_COUNTERS_FROM and any(info[8:]):
        return [Counted("set")]
    return [Perhaps("set")]


def _connlabel(_revision: int, info: bytes, _version: Version) -> list[Step]:
    _, options = struct.unpack_from("=HH", info)
    return [Touch("connlabel", each=False) if options & _CONNLABEL_SET else Perhaps("connlabel")]


def _nothing(_revision: int, _info: bytes, _version: Version) -> list[Step]:
    return []


_KNOWN: dict[str, Callable[[int, bytes, Version], list[Step]]] = {
    "tcp": _tcp,
    "udp": _udp,
    "udplite": _udp,
    "multiport": _multiport,
    "conntrack": _conntrack,
    "state": _state,
    "mark": _mark,
    "addrtype": _addrtype,
    "icmp": _icmp,
    "icmp6": _icmp,
    "pkttype": _packet_type,
    "iprange": _iprange,
    "set": _set,
    "connlabel": _connlabel,
    "comment": _nothing,
}
