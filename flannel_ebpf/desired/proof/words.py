"""A rule in words, much as `nft list ruleset` prints one; for status, doctor and logs."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

from flannel_ebpf.desired.proof.packets import Field, Version, all_of
from flannel_ebpf.desired.proof.ranges import NAME_LEN, Ranges, without
from flannel_ebpf.desired.proof.rules import (
    Accept,
    AddressType,
    Among,
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

_SHOWN = 4
_NAMES = {
    Field.SADDR: "saddr",
    Field.DADDR: "daddr",
    Field.PROTOCOL: "protocol",
    Field.SPORT: "sport",
    Field.DPORT: "dport",
    Field.ICMP_TYPE: "icmp type",
    Field.TCP_FLAGS: "tcp flags",
    Field.STATE: "ct state",
    Field.FRAGMENT: "fragment",
    Field.PACKET_TYPE: "pkttype",
    Field.MARK: "mark",
    Field.IIF: "iifname",
    Field.OIF: "oifname",
}
_PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 132: "sctp"}
_STATES = {1: "invalid", 2: "established", 4: "related", 8: "new", 64: "untracked"}


def sentence(where: Where, what: str) -> str:
    """Return where a rule stands, what it does, and the rule."""
    if where.rule is None:
        return f"{where.chain}: {what}"
    comment = f" /* {where.rule.comment} */" if where.rule.comment else ""
    return f"{where.chain} rule {where.rule.handle}: {what}: {rule_text(where.rule)}{comment}"


def addresses_text(ranges: Ranges) -> str:
    """Return addresses as networks where they are one, else as ranges."""
    return ", ".join(_addresses(first, last) for first, last in ranges)


def rule_text(rule: Rule) -> str:
    """Return a rule's steps and verdict."""
    return " ".join([*map(_step, rule.steps), *_verdict(rule.verdict)])


def _step(step: Step) -> str:  # noqa: PLR0911 - one line for each kind of step
    match step:
        case Within(field, ranges):
            return f"{_NAMES[field]} {_within(field, ranges)}"
        case Masked(field, mask, value, inverted):
            return f"{_NAMES[field]} and {mask:#x} {'!= ' if inverted else ''}{value:#x}"
        case AddressType(field, kinds, inverted):
            return f"fib {_NAMES[field]} type {'!= ' if inverted else ''}{','.join(sorted(kinds))}"
        case Among(fields, elements, inverted):
            return f"{_fields(fields)} {'!= ' if inverted else ''}{{ {len(elements)} elements }}"
        case Perhaps(what) | Touch(what) | Counted(what):
            return what
        case SetMark(mask, xor):
            return "mark set" + ("" if mask is None else f" mark and {mask:#x} xor {xor:#x}")
        case Translate(what, to):
            return what + ("" if not to else f" to {_within(Field.DADDR, to)}")


def _verdict(verdict: Verdict) -> list[str]:
    match verdict:
        case Accept():
            return ["accept"]
        case Drop(what):
            return [what]
        case Return():
            return ["return"]
        case Jump(chain, back):
            return [("jump " if back else "goto ") + chain]
        case Choose(fields, elements):
            return [f"{_fields(fields)} vmap {{ {len(elements)} elements }}"]
        case None:
            return []


def _fields(fields: tuple[Field | None, ...]) -> str:
    return " . ".join("?" if field is None else _NAMES[field] for field in fields)


def _within(field: Field, ranges: Ranges) -> str:
    """Return a set in its shorter form: itself, or what it is not."""
    version: Version = 6 if ranges and ranges[-1][1] >> 32 else 4
    rest = without(all_of(field, version), ranges)
    if field not in {Field.STATE, Field.FRAGMENT} and len(rest) < len(ranges) + (rest[:1] != ranges[:1]):
        return "!= " + _set(field, rest) if rest else "any"
    return _set(field, ranges)


def _set(field: Field, ranges: Ranges) -> str:
    found = [_range(field, first, last) for first, last in ranges[:_SHOWN]]
    found += ["..."] if len(ranges) > _SHOWN else []
    return found[0] if len(found) == 1 else "{ " + ", ".join(found) + " }"


def _range(field: Field, first: int, last: int) -> str:
    if field in {Field.IIF, Field.OIF}:
        name = first.to_bytes(NAME_LEN).rstrip(b"\0").decode(errors="replace")
        return f'"{name}"' if first == last else f'"{name}*"'
    if field in {Field.SADDR, Field.DADDR}:
        return _addresses(first, last)
    if field == Field.STATE:
        return ",".join(word for bit, word in _STATES.items() if first <= bit <= last)
    names = _PROTOCOLS if field == Field.PROTOCOL else {}
    return names.get(first, str(first)) if first == last else f"{first}-{last}"


def _addresses(first: int, last: int) -> str:
    kind = IPv6Address if last >> 32 else IPv4Address
    if first == last:
        return str(kind(first))
    bits = (first ^ last).bit_length()
    if first & ((1 << bits) - 1) == 0 and first | ((1 << bits) - 1) == last:
        return f"{kind(first)}/{(128 if kind is IPv6Address else 32) - bits}"
    return f"{kind(first)}-{kind(last)}"
