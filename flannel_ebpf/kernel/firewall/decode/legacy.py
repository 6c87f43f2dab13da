"""A table of iptables-legacy, as getsockopt(IPT_SO_GET_ENTRIES) gives it: entries one behind the other.

Layouts: linux/netfilter_ipv4/ip_tables.h (ipt_entry), linux/netfilter/x_tables.h. IPv4 only.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from flannel_ebpf.desired.proof.packets import Field
from flannel_ebpf.desired.proof.ranges import NAME_LEN, Ranges, exactly, names_from, up_to, without
from flannel_ebpf.desired.proof.rules import (
    QUEUE,
    Accept,
    BaseChain,
    Chain,
    ChainName,
    Drop,
    Hook,
    Jump,
    Masked,
    Return,
    Rule,
    Step,
    TableName,
    Verdict,
    Within,
    effective,
)
from flannel_ebpf.kernel.firewall.decode import xt_matches, xt_targets

INFO = struct.Struct("=32sI5I5III")
"""ipt_getinfo: name, valid hooks, where each hook's chain begins and has its policy, entries, octets."""

_HOOKS = (Hook.PREROUTING, Hook.INPUT, Hook.FORWARD, Hook.OUTPUT, Hook.POSTROUTING)
_NAMES = ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING")
_PRIORITIES = {"raw": -300, "mangle": -150, "filter": 0, "security": 50}
_NAT_PRIORITIES = {Hook.PREROUTING: -100, Hook.OUTPUT: -100, Hook.INPUT: 100, Hook.POSTROUTING: 100}

_IP = struct.Struct("=4s4s4s4s16s16s16s16sHBB")  # ipt_ip
_OFFSETS = struct.Struct("=HH")
_OFFSETS_AT, _COUNTERS_AT, _ENTRY = 88, 96, 112
_XT = struct.Struct("=H29sB")  # xt_entry_match, xt_entry_target
_VERDICT = struct.Struct("=i")
_GOTO, _FRAGMENTS = 0x02, 0x01
_INV_IIF, _INV_OIF, _INV_SADDR, _INV_DADDR, _INV_FRAGMENTS, _INV_PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x20, 0x40
_DROP, _ACCEPT, _QUEUE, _RETURN = -1, -2, -4, -5  # -NF_* - 1
_FIRST_FRAGMENT: Ranges = exactly(0, 0x4000)


class _Entry(NamedTuple):
    offset: int
    body: bytes
    target_at: int

    @property
    def target(self) -> str:
        return _name(_XT.unpack_from(self.body, self.target_at)[1])

    @property
    def verdict(self) -> int:
        return int(_VERDICT.unpack_from(self.body, self.target_at + _XT.size)[0])


@dataclass(frozen=True, slots=True)
class Table:
    """One table: its base chains, and all chains by name."""

    bases: tuple[BaseChain, ...]
    chains: dict[ChainName, Chain]


def decode(name: str, info: bytes, entries: bytes) -> Table:
    """Return a table from what IPT_SO_GET_INFO and IPT_SO_GET_ENTRIES (without its head) say."""
    _, valid, *rest = INFO.unpack(info)
    begins, policies = rest[:5], rest[5:10]
    table = TableName("legacy", name)
    starts = {begins[hook]: _NAMES[hook] for hook in range(5) if valid >> hook & 1}
    found = list(_entries(entries))
    chains = _chains(found, starts)
    places = {members[0].offset: chain for chain, members in chains.items() if members}
    bases = []
    for hook in range(5):
        if valid >> hook & 1:
            policy = next(entry for entry in found if entry.offset == policies[hook])
            bases.append(
                BaseChain(
                    ChainName(table, _NAMES[hook]),
                    _HOOKS[hook],
                    _PRIORITIES.get(name, _NAT_PRIORITIES.get(_HOOKS[hook], 0)),
                    drops=policy.verdict == _DROP,
                    translates=name == "nat",
                )
            )
    return Table(
        tuple(bases),
        {
            ChainName(table, chain): Chain(ChainName(table, chain), _rules(members, places))
            for chain, members in chains.items()
        },
    )


def without_counters(entries: bytes) -> bytes:
    """Return a table's entries with all counters zero: what is left changes only with the rules."""
    plain = bytearray(entries)
    offset = 0
    while offset + _ENTRY <= len(plain):
        plain[offset + _COUNTERS_AT : offset + _ENTRY] = bytes(_ENTRY - _COUNTERS_AT)
        size = _OFFSETS.unpack_from(plain, offset + _OFFSETS_AT)[1]
        if size < _ENTRY:
            break
        offset += size
    return bytes(plain)


def _entries(data: bytes) -> Iterator[_Entry]:
    offset = 0
    while offset + _ENTRY <= len(data):
        target_at, size = _OFFSETS.unpack_from(data, offset + _OFFSETS_AT)
        if size < _ENTRY:
            return
        yield _Entry(offset, data[offset : offset + size], target_at)
        offset += size


def _chains(entries: Sequence[_Entry], starts: dict[int, str]) -> dict[str, list[_Entry]]:
    """Return each chain's entries, its policy or the return at its end included."""
    chains: dict[str, list[_Entry]] = {}
    current: list[_Entry] = []
    for entry in entries:
        if (
            entry.target == "ERROR"
        ):  # a user's chain begins behind one with its name; the table ends with another
            current = chains.setdefault(_name(entry.body[entry.target_at + _XT.size :]), [])
            continue
        if entry.offset in starts:
            current = chains.setdefault(starts[entry.offset], [])
        current.append(entry)
    return chains


def _rules(members: Sequence[_Entry], places: dict[int, str]) -> tuple[Rule, ...]:
    found = (_rule(entry, place, places) for place, entry in enumerate(members[:-1], 1))
    return tuple(rule for rule in found if rule is not None)


def _rule(entry: _Entry, place: int, places: dict[int, str]) -> Rule | None:
    steps = _ip_steps(entry.body)
    comment = ""
    for name, revision, info in _matches(entry):
        if name == "comment":
            comment = _name(info)
        steps += xt_matches.decode(name, revision, info, 4)
    size, _, revision = _XT.unpack_from(entry.body, entry.target_at)
    info = entry.body[entry.target_at + _XT.size : entry.target_at + size]
    verdict: Verdict
    if entry.target:
        more, verdict = xt_targets.decode(entry.target, revision, info, 4)
        steps += more
    else:
        verdict = _verdict(entry, places)
    return effective(steps, verdict, place, comment)


def _verdict(entry: _Entry, places: dict[int, str]) -> Verdict:
    code = entry.verdict
    if code == entry.offset + len(entry.body):  # to the next entry: no target
        return None
    if code >= 0:
        return Jump(places[code], back=not entry.body[_IP.size - 2] & _GOTO)
    known: dict[int, Verdict] = {_DROP: Drop(), _ACCEPT: Accept(), _QUEUE: Drop(QUEUE), _RETURN: Return()}
    return known.get(code, Drop(f"verdict {code}"))


def _matches(entry: _Entry) -> Iterator[tuple[str, int, bytes]]:
    at = _ENTRY
    while at + _XT.size <= entry.target_at:
        size, name, revision = _XT.unpack_from(entry.body, at)
        if size < _XT.size:
            return
        yield _name(name), revision, entry.body[at + _XT.size : at + size]
        at += size


def _ip_steps(body: bytes) -> list[Step]:
    saddr, daddr, smask, dmask, iif, oif, iif_mask, oif_mask, protocol, flags, inverted = _IP.unpack_from(
        body
    )
    steps: list[Step] = []
    for field, name, mask, inverts in (
        (Field.IIF, iif, iif_mask, _INV_IIF),
        (Field.OIF, oif, oif_mask, _INV_OIF),
    ):
        length = len(mask.rstrip(b"\0"))
        if length:
            whole = name[:length].endswith(b"\0") or length == NAME_LEN
            inside = exactly(int.from_bytes(name)) if whole else names_from(name[:length])
            steps.append(Within(field, without(up_to(128), inside) if inverted & inverts else inside))
    for field, address, mask, inverts in (
        (Field.SADDR, saddr, smask, _INV_SADDR),
        (Field.DADDR, daddr, dmask, _INV_DADDR),
    ):
        if any(mask) or inverted & inverts:
            steps.append(
                _address(field, int.from_bytes(address), int.from_bytes(mask), bool(inverted & inverts))
            )
    if protocol:
        inside = exactly(protocol & 0xFF)
        steps.append(
            Within(Field.PROTOCOL, without(up_to(8), inside) if inverted & _INV_PROTOCOL else inside)
        )
    if flags & _FRAGMENTS:
        first = bool(inverted & _INV_FRAGMENTS)
        steps.append(
            Within(Field.FRAGMENT, _FIRST_FRAGMENT if first else without(up_to(16), _FIRST_FRAGMENT))
        )
    return steps


def _address(field: Field, address: int, mask: int, inverted: bool) -> Step:
    free = ~mask & 0xFFFFFFFF
    if free & (free + 1):
        return Masked(field, mask, address, inverted)
    inside: Ranges = ((address & mask, address & mask | free),)
    return Within(field, without(up_to(32), inside) if inverted else inside)


def _name(octets: bytes) -> str:
    return octets.split(b"\0")[0].decode(errors="replace")
