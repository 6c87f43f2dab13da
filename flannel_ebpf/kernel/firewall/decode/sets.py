"""What an nftables set or map holds, as ranges of its keys.

A key of several fields has each of them at a multiple of four octets. Layouts: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from flannel_ebpf.desired.proof.ranges import NAME_LEN, Ranges
from flannel_ebpf.desired.proof.rules import Verdict
from flannel_ebpf.kernel.firewall.decode.attributes import DATA_VALUE, each, u32, verdict_in
from flannel_ebpf.kernel.firewall.decode.loads import Load
from flannel_ebpf.kernel.netlink.route_socket import attributes

SET_NAME, SET_FLAGS, SET_KEY_LEN, _SET_EXPR, _SET_EXPRESSIONS = 2, 3, 5, 17, 18
_INTERVAL, _TIMEOUT, _EVAL, _CONCAT = 0x4, 0x10, 0x20, 0x80
_ELEM_KEY, _ELEM_DATA, _ELEM_FLAGS, _ELEM_EXPR, _ELEM_KEY_END, _ELEM_EXPRESSIONS = 1, 2, 3, 7, 10, 11
_INTERVAL_END, _CATCHALL = 1, 2
_EXPR_NAME = 1
_EXPR_ELEM = 1
_HARMLESS = {b"counter\0", b"last\0"}


class Element(NamedTuple):
    """One element: its first and last key, and in a map its data (a verdict or octets)."""

    first: bytes
    last: bytes
    data: Verdict | bytes = None


@dataclass(frozen=True, slots=True)
class Contents:
    """A set's elements. `moving`: packets themselves add some, so nobody knows; `unsure`: some time out.

    `counts`: a look into it counts, and the count may decide. `otherwise` is the data of the catch-all
    element.
    """

    elements: tuple[Element, ...] = ()
    moving: bool = False
    unsure: bool = False
    counts: bool = False
    catches_all: bool = False
    otherwise: Verdict | bytes = None
    key_len: int = field(default=0, compare=False)


UNKNOWN = Contents(moving=True, counts=True)


def contents(declared: bytes, elements: Iterable[bytes]) -> Contents:
    """Return a set from the attributes that declare it and those of its elements."""
    found = attributes(declared)
    flags, key_len = u32(found.get(SET_FLAGS)), u32(found.get(SET_KEY_LEN))
    stateful = [*_names(found.get(_SET_EXPR)), *_listed(found.get(_SET_EXPRESSIONS))]
    every = [attributes(one) for one in elements]
    for one in every:
        stateful += [*_names(one.get(_ELEM_EXPR)), *_listed(one.get(_ELEM_EXPRESSIONS))]
    catch_all = [one for one in every if u32(one.get(_ELEM_FLAGS)) & _CATCHALL]
    plain = [one for one in every if not u32(one.get(_ELEM_FLAGS)) & _CATCHALL]
    intervals = flags & _INTERVAL and not flags & _CONCAT
    return Contents(
        tuple(_intervals(plain, key_len) if intervals else map(_element, plain)),
        moving=bool(flags & _EVAL),
        unsure=bool(flags & _TIMEOUT),
        counts=any(name not in _HARMLESS for name in stateful),
        catches_all=bool(catch_all),
        otherwise=_data(catch_all[0]) if catch_all else None,
        key_len=key_len,
    )


def _names(expression: bytes | None) -> list[bytes]:
    return [attributes(expression)[_EXPR_NAME]] if expression else []


def _listed(expressions: bytes | None) -> list[bytes]:
    return [name for one in each(expressions or b"", _EXPR_ELEM) for name in _names(one)]


def _data(element: dict[int, bytes]) -> Verdict | bytes:
    return verdict_in(attributes(element[_ELEM_DATA])) if _ELEM_DATA in element else None


def _key(payload: bytes) -> bytes:
    return attributes(payload)[DATA_VALUE]


def _element(element: dict[int, bytes]) -> Element:
    first = _key(element[_ELEM_KEY])
    last = _key(element[_ELEM_KEY_END]) if _ELEM_KEY_END in element else first
    return Element(first, last, _data(element))


def _intervals(elements: list[dict[int, bytes]], length: int) -> Iterator[Element]:
    """Yield intervals: each begins with an element and ends before the next one that is marked as an end."""
    found = sorted(
        ((_key(e[_ELEM_KEY]), not u32(e.get(_ELEM_FLAGS)) & _INTERVAL_END, e) for e in elements),
        key=lambda one: one[:2],
    )
    for at, (first, begins, element) in enumerate(found):
        if not begins:
            continue
        ends = found[at + 1][0] if at + 1 < len(found) else None
        last = (
            (int.from_bytes(ends) - 1).to_bytes(length) if ends and int.from_bytes(ends) else b"\xff" * length
        )
        yield Element(first, last, _data(element))


def ranges_of(loads: Sequence[Load], element: Element) -> tuple[Ranges, ...] | None:
    """Return an element's ranges, one for each register of the key; None when it is of another length."""
    found: list[Ranges] = []
    at = 0
    for load in loads:
        first, last = element.first[at : at + load.length], element.last[at : at + load.length]
        if len(first) != load.length:
            return None
        names = load.length == NAME_LEN
        low = int.from_bytes(first) if names else load.number(first)
        high = int.from_bytes(last) if names else load.number(last)
        found.append(((low, high),))
        at += (load.length + 3) & ~3
    return tuple(found) if at >= len(element.first) else None
