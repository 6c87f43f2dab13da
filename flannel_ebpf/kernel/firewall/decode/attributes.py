"""Netlink attributes of nf_tables: lists, big-endian numbers, names, verdicts.

Layouts: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping

from flannel_ebpf.desired.proof.rules import QUEUE, Accept, Drop, Jump, Return, Verdict
from flannel_ebpf.kernel.netlink.route_socket import attributes

DATA_VALUE, _DATA_VERDICT = 1, 2

_ATTRIBUTE = struct.Struct("=HH")
_TYPE = 0x3FFF
_LIST_ELEM = 1
_VERDICT_CODE, _VERDICT_CHAIN = 1, 2
_DROP, _ACCEPT, _QUEUE = 0, 1, 3
_CONTINUE, _BREAK, _JUMP, _GOTO, _RETURN = -1, -2, -3, -4, -5


def each(data: bytes, kind: int = _LIST_ELEM) -> Iterator[bytes]:
    """Yield the payload of every attribute of this type, in order."""
    offset, end = 0, len(data)
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= end:
        length, found = unpack(data, offset)
        if length < 4:
            return
        if found & _TYPE == kind:
            yield data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def u32(payload: bytes | None) -> int:
    """Return a number as nf_tables writes it, 0 for a missing one."""
    return int.from_bytes(payload) if payload else 0


def text(payload: bytes | None) -> str:
    """Return a name."""
    return payload.rstrip(b"\0").decode(errors="replace") if payload else ""


def verdict_in(data: Mapping[int, bytes]) -> Verdict | bytes:
    """Return what NFTA_DATA_* hold: a verdict, or a value as it is."""
    if _DATA_VERDICT not in data:
        return data.get(DATA_VALUE, b"")
    found = attributes(data[_DATA_VERDICT])
    code = int.from_bytes(found[_VERDICT_CODE], signed=True)
    chain = text(found.get(_VERDICT_CHAIN))
    plain: dict[int, Verdict] = {
        _ACCEPT: Accept(),
        _DROP: Drop(),
        _RETURN: Return(),
        _JUMP: Jump(chain),
        _GOTO: Jump(chain, back=False),
        _CONTINUE: None,
        _BREAK: None,
    }
    if code in plain:
        return plain[code]
    return Drop(QUEUE if code & 0xFF == _QUEUE else f"verdict {code}")  # the queue's number stands above
