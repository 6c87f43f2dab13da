"""Which part of the rules a message of nf_tables tells of. Layouts: linux/netfilter/nf_tables.h."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flannel_ebpf.desired.proof.rules import ChainName, TableName
from flannel_ebpf.kernel.firewall.decode.attributes import text
from flannel_ebpf.kernel.firewall.nfnetlink import KINDS
from flannel_ebpf.kernel.netlink.route_socket import attributes

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_TABLE, _CHAIN, _RULE = {0, 2}, {3, 5}, {6, 8}  # NFT_MSG_NEW* and DEL* of each
_SET, _ELEMENTS = {9, 11}, {12, 14}
_NFGENMSG = 4
_ATTR_TABLE, _ATTR_NAME, _ATTR_CHAIN_NAME, _ATTR_CHAIN_HOOK = 1, 2, 3, 4


@dataclass(frozen=True, slots=True)
class SetName:
    """A set or map in a table."""

    table: TableName
    name: str


Part = TableName | ChainName | SetName
"""What may have changed: a table or its base chains, a chain or its rules, a set or its elements."""


def parts_in(kind: int, body: bytes) -> Iterator[Part]:
    """Yield what a message of this type says has changed; nothing for families that we do not meet."""
    family = KINDS.get(body[0]) if kind & 0xFF00 == _SUBSYSTEM and len(body) > _NFGENMSG else None
    if family is None:
        return
    found, what = attributes(body, _NFGENMSG), kind & 0xFF
    table = TableName(family, text(found.get(_ATTR_TABLE)))
    if what in _TABLE:
        yield table
    elif what in _CHAIN:
        yield ChainName(table, text(found.get(_ATTR_CHAIN_NAME)))
        if _ATTR_CHAIN_HOOK in found:
            yield table
    elif what in _RULE:
        yield ChainName(table, text(found.get(_ATTR_NAME)))
    elif what in _SET or what in _ELEMENTS:
        yield SetName(table, text(found.get(_ATTR_NAME)))
