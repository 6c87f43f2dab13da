"""From a rule of nftables, as the kernel runs it, to a rule of the proof.

A rule is a list of expressions over 64 octets of registers. Each loads something, compares, acts or
decides; the first comparison that fails ends the rule. iptables-nft's rules are the same, with xtables' own
matches and targets as two more expressions. What is not known here touches the packet. An expression that
many rules have is parsed once. Layouts: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache

from flannel_ebpf.desired.proof.packets import Field, Version
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges
from flannel_ebpf.desired.proof.rules import (
    QUEUE,
    Accept,
    AddressType,
    Counted,
    Drop,
    Perhaps,
    Rule,
    SetMark,
    Touch,
    Translate,
    effective,
)
from flannel_ebpf.kernel.firewall.decode import loads, lookups, xt_matches, xt_targets
from flannel_ebpf.kernel.firewall.decode.attributes import each, text, u32, verdict_in
from flannel_ebpf.kernel.firewall.decode.loads import ADDRESS_TYPES, ROUTE_TYPES, Load
from flannel_ebpf.kernel.firewall.decode.registers import Registers, Surroundings
from flannel_ebpf.kernel.netlink.route_socket import attributes

RULE_HANDLE, RULE_EXPRESSIONS, RULE_USERDATA = 3, 4, 7
_EXPR_NAME, _EXPR_DATA = 1, 2
_COUNTER = b"counter\0"
_PARSED = 2048

_FIB_RESULT_ADDRTYPE = 3
_FIB_SADDR, _FIB_DADDR = 1, 2
_NAT_SNAT = 0
_VERDICT_REGISTER = 0
_FIRST_OF_FOUR = 8
_MASK_XOR = 0
_META_NFTRACE = 12
_NUMGEN_INCREMENTAL = 0
_OBJECT_COUNTER = 1

_NO_EFFECT = {"counter", "log", "last"}
_COUNTED = {"limit", "quota", "connlimit"}
_ENDS = {"reject", "synproxy", "tproxy", "fwd", QUEUE}
_LOADS = {"rt": 1, "exthdr": 1, "osf": 1, "xfrm": 1, "socket": 2, "hash": 2, "tunnel": 2}
"""Expressions that load what we know nothing of: the attribute that names their register."""
_ONCE = {"flow_offload"}
"""What is done to the first packet of a flow and holds for it."""
_CT_ZONE = 17
_SEEN = {(1, 0), (1, 1), (1, 8)}
"""Network header's TOS (which nft writes as part of two octets) and TTL: base and offset."""

Data = dict[int, bytes]
Operation = Callable[[Registers], None]


def decode(found: Data, version: Version, around: Surroundings) -> Rule | None:
    """Return one rule from its netlink attributes; None when it has no effect on IPv`version` packets."""
    rule = Registers(version, around)
    for expression in each(found.get(RULE_EXPRESSIONS, b"")):
        if expression.startswith(_COUNTER, 4):  # each with other numbers: nothing to remember
            continue
        _operation(expression, version)(rule)
        if rule.ended:
            break
    comment = rule.comment or _comment(found.get(RULE_USERDATA, b""))
    return effective(rule.steps, rule.verdict, int.from_bytes(found.get(RULE_HANDLE, b"")), comment)


def _comment(userdata: bytes) -> str:
    """Return the comment in a rule's user data: type (libnftnl: 0 is a comment), length, value."""
    at = 0
    while at + 2 <= len(userdata):
        kind, length = userdata[at], userdata[at + 1]
        if kind == 0:
            return text(userdata[at + 2 : at + 2 + length])
        at += 2 + length
    return ""


@lru_cache(_PARSED)
def _operation(expression: bytes, version: Version) -> Operation:  # noqa: PLR0911 - one for each kind
    """Return what an expression does to a rule's registers."""
    one = attributes(expression)
    name, data = text(one.get(_EXPR_NAME)), attributes(one.get(_EXPR_DATA, b""))
    if name in _KNOWN:
        return _KNOWN[name](data, version)
    if name in _NO_EFFECT:
        return _nothing
    if name in _COUNTED:
        return lambda rule: rule.test(Counted(name))
    if name in _ENDS:
        return lambda rule: rule.end(Drop(name))
    if name in _LOADS and _LOADS[name] in data:
        return _store(data[_LOADS[name]], Load(name, 4, varies=name == "exthdr"))
    if name in _ONCE:
        return lambda rule: rule.steps.append(Touch(name, each=False))
    return lambda rule: rule.touch(name)


def _nothing(_rule: Registers) -> None:
    pass


def _place(register: bytes | None) -> int:
    """Return a register's place in units of four octets: 1 to 4 have sixteen each, 8 to 23 four."""
    number = u32(register)
    return (number - 1) * 4 if number < _FIRST_OF_FOUR else number - _FIRST_OF_FOUR


def _store(register: bytes | None, load: Load) -> Operation:
    place = _place(register)
    return lambda rule: rule.store(place, load)


def _payload(data: Data, version: Version) -> Operation:
    if 1 not in data:  # NFTA_PAYLOAD_DREG: else it writes into the packet
        seen = (u32(data.get(2)), u32(data.get(3))) in _SEEN  # flows are not learned where these two change
        return lambda rule: rule.steps.append(Touch("payload set", each=not seen))
    return _store(data[1], loads.payload(version, u32(data.get(2)), u32(data.get(3)), u32(data.get(4))))


def _meta(data: Data, version: Version) -> Operation:
    key = u32(data.get(2))
    if 1 in data:  # NFTA_META_DREG
        return _store(data[1], loads.meta(version, key))
    place = _place(data.get(3))
    if key == loads.META_MARK:
        return lambda rule: rule.steps.append(_new_mark(rule.read(place)))
    if key == _META_NFTRACE:
        return _nothing
    return lambda rule: rule.steps.append(Touch(f"meta {key} set"))


def _new_mark(load: Load) -> SetMark:
    if load.constant is not None:
        return SetMark(0, int.from_bytes(load.constant, sys.byteorder))
    if load.mask is not None and load.parts[0] and load.parts[0].field == Field.MARK:
        return SetMark(load.mask, load.xor)
    return SetMark(None, 0)


def _ct(data: Data, _version: Version) -> Operation:
    key = u32(data.get(2))
    if 1 in data:  # NFTA_CT_DREG
        return _store(data[1], loads.conntrack(key))
    return lambda rule: rule.steps.append(Touch(f"ct {key} set", each=key == _CT_ZONE))


def _fib(data: Data, _version: Version) -> Operation:
    result, flags = u32(data.get(2)), u32(data.get(3))
    if result == _FIB_RESULT_ADDRTYPE and flags in {_FIB_SADDR, _FIB_DADDR}:
        field = Field.SADDR if flags == _FIB_SADDR else Field.DADDR
        return _store(data.get(1), ADDRESS_TYPES[field])
    return _store(data.get(1), Load(f"fib {result}", 4))


def _immediate(data: Data, _version: Version) -> Operation:
    value = verdict_in(attributes(data.get(2, b"")))
    if isinstance(value, bytes):
        return _store(data.get(1), Load("immediate", len(value), constant=value))
    if value is None:
        return _nothing
    return lambda rule: rule.end(value)


def _bitwise(data: Data, _version: Version) -> Operation:
    source, target = _place(data.get(1)), _place(data.get(2))
    length, plain = u32(data.get(3)), u32(data.get(6)) == _MASK_XOR and 8 not in data
    mask, xor = (attributes(data.get(key, b"")).get(1, b"") for key in (4, 5))

    def take(rule: Registers) -> None:
        load = rule.read(source)
        known = plain and load.constant is None and len(load.parts) == 1
        rule.store(target, load.masked(mask, xor) if known else Load(load.what, length, varies=load.varies))

    return take


def _byteorder(data: Data, _version: Version) -> Operation:
    source, target = _place(data.get(1)), _place(data.get(2))

    def take(rule: Registers) -> None:
        load = rule.read(source)
        plain = load.mask is None and load.constant is None and not load.index
        parts = load.parts if plain else (None,)
        rule.store(target, Load(load.what, load.length, parts, varies=load.varies))

    return take


def _cmp(data: Data, version: Version) -> Operation:
    place, operator = _place(data.get(1)), u32(data.get(2))
    value = attributes(data.get(3, b"")).get(1, b"")

    def take(rule: Registers) -> None:
        load = rule.read(place)
        if load.type_of is not None and operator in {loads.EQ, loads.NEQ}:
            kinds = frozenset([ROUTE_TYPES.get(load.number(value), "other")])
            rule.test(AddressType(load.type_of, kinds, operator == loads.NEQ))
        elif load.index:
            rule.test(loads.by_index(load, operator, value, rule.around.device))
        else:
            rule.test(*loads.compare(load, operator, value, version))

    return take


def _range(data: Data, version: Version) -> Operation:
    place, inverted = _place(data.get(1)), u32(data.get(2)) == loads.NEQ
    first, last = (attributes(data.get(key, b"")).get(1, b"") for key in (3, 4))
    return lambda rule: rule.test(loads.between(rule.read(place), first, last, version, inverted=inverted))


def _lookup(data: Data, version: Version) -> Operation:
    name, place, inverted = text(data.get(1)), _place(data.get(2)), bool(u32(data.get(5)) & 1)
    target = data.get(3)

    def take(rule: Registers) -> None:
        contents = rule.around.contents(name)
        key = lookups.key(rule.read, place, contents.key_len)
        if contents.counts:
            rule.test(Counted(f"@{name}"))
        if target is None:
            rule.test(lookups.member(f"@{name}", key, contents, version, inverted=inverted))
        elif u32(target) == _VERDICT_REGISTER:
            if not lookups.is_known(key, contents):
                rule.test(Touch(f"vmap @{name}"))
            rule.test(*(load.perhaps() for load in key if load.field is None and load.varies))
            rule.end(lookups.choice(key, contents))
        else:
            rule.test(Perhaps(f"@{name}", any(load.varies and load.field is None for load in key)))
            rule.store(_place(target), lookups.mapped(f"map @{name}", contents, version))

    return take


def _nat(data: Data, _version: Version) -> Operation:
    what = "snat" if u32(data.get(1)) == _NAT_SNAT else "dnat"
    low, high = data.get(3), data.get(4)

    def take(rule: Registers) -> None:
        to: Ranges | None = NOTHING
        if low is not None:
            to = _between(rule.read(_place(low)), rule.read(_place(low if high is None else high)))
        rule.test(Translate(what, to))
        rule.end(Accept())

    return take


def _between(low: Load, high: Load) -> Ranges | None:
    if low is high:
        return low.addresses if low.constant is None else _points(low.constant, low.constant)
    return _points(low.constant, high.constant) if low.constant and high.constant else None


def _points(low: bytes, high: bytes) -> Ranges:
    return ((int.from_bytes(low), int.from_bytes(high)),)


def _local_nat(_data: Data, _version: Version) -> Operation:
    def take(rule: Registers) -> None:
        rule.test(Translate("nat to this host's address", NOTHING))
        rule.end(Accept())

    return take


def _objref(data: Data, _version: Version) -> Operation:
    kind = u32(data.get(1))
    if kind == _OBJECT_COUNTER:
        return _nothing
    # Other rules may ask the same limit or quota.
    return lambda rule: rule.test(Touch("object"), Perhaps("object", varies=True))


def _numgen(data: Data, _version: Version) -> Operation:
    place, counts = _place(data.get(1)), u32(data.get(3)) == _NUMGEN_INCREMENTAL
    load = Load("numgen", 4, varies=True)

    def take(rule: Registers) -> None:
        rule.test(*([Counted("numgen inc")] if counts else []))
        rule.store(place, load)

    return take


def _match(data: Data, version: Version) -> Operation:
    name, info = text(data.get(1)), data.get(3, b"")
    if name == "comment":
        comment = text(info.split(b"\0")[0])
        return lambda rule: setattr(rule, "comment", comment)
    steps = xt_matches.decode(name, u32(data.get(2)), info, version)
    return lambda rule: rule.test(*steps)


def _target(data: Data, version: Version) -> Operation:
    steps, verdict = xt_targets.decode(text(data.get(1)), u32(data.get(2)), data.get(3, b""), version)

    def take(rule: Registers) -> None:
        rule.test(*steps)
        if verdict is not None:
            rule.end(verdict)

    return take


_KNOWN: dict[str, Callable[[Data, Version], Operation]] = {
    "payload": _payload,
    "meta": _meta,
    "ct": _ct,
    "fib": _fib,
    "immediate": _immediate,
    "bitwise": _bitwise,
    "byteorder": _byteorder,
    "cmp": _cmp,
    "range": _range,
    "lookup": _lookup,
    "nat": _nat,
    "masq": _local_nat,
    "redir": _local_nat,
    "objref": _objref,
    "numgen": _numgen,
    "match": _match,
    "target": _target,
}
