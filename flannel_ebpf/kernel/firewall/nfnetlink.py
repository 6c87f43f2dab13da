"""What nf_tables holds, read through nfnetlink: tables, base chains, a chain's rules, a set's elements.

A chain of a thousand rules takes 16 ms, all of 10,000 rules 40 ms; the tools take five times that, and `nft
--json` tells nothing of xtables' matches but their names. Layouts: linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges, either, exactly, name_number, names_from
from flannel_ebpf.desired.proof.rules import BaseChain, ChainName, Hook, Kind, TableName
from flannel_ebpf.kernel.firewall.decode.attributes import each, text, u32
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket, attribute, attributes

NETLINK_NETFILTER = 12
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_GETTABLE, _GETCHAIN, _GETRULE, _GETSET, _GETSETELEM = 1, 4, 7, 10, 13
_HEAD = struct.Struct("=BBH")  # nfgenmsg: family, version, resource
KINDS: dict[int, Kind] = {1: "inet", 2: "ip", 5: "netdev", 7: "bridge", 10: "ip6"}
"""nf_tables' families; arp's rules see no packet of ours."""
FAMILIES = {kind: family for family, kind in KINDS.items()}

_TABLE, _NAME, _FLAGS = 1, 3, 2
_TABLE_DORMANT = 1
_CHAIN_HOOK, _CHAIN_POLICY, _CHAIN_TYPE = 4, 5, 7
_HOOK_NUMBER, _HOOK_PRIORITY, _HOOK_DEVICE, _HOOK_DEVICES = 1, 2, 3, 4
_DEVICE_NAME, _DEVICE_PREFIX = 1, 2
_RULE_TABLE, _RULE_CHAIN = 1, 2
_SET_TABLE, _SET_NAME = 1, 2
_ELEM_LIST_TABLE, _ELEM_LIST_SET, _ELEM_LIST_ELEMENTS = 1, 2, 3
_INGRESS_OF_INET = 5

_HOOKS: dict[str, tuple[Hook, ...]] = {
    "ip": (Hook.PREROUTING, Hook.INPUT, Hook.FORWARD, Hook.OUTPUT, Hook.POSTROUTING, Hook.INGRESS),
    "bridge": (
        Hook.BRIDGE_PREROUTING,
        Hook.BRIDGE_INPUT,
        Hook.BRIDGE_FORWARD,
        Hook.BRIDGE_OUTPUT,
        Hook.BRIDGE_POSTROUTING,
    ),
    "netdev": (Hook.INGRESS, Hook.EGRESS),
}


class NftSocket:
    """Asks nf_tables of the network namespace of the thread that makes it; methods raise KernelError."""

    def __init__(self) -> None:
        self._netlink = RouteSocket(protocol=NETLINK_NETFILTER)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def base_chains(self) -> list[BaseChain]:
        """Return every base chain of a table that is not dormant, in the order in which packets meet them."""
        awake = {
            (body[0], found[_TABLE])
            for body, found in self._dump(_GETTABLE, 0, b"")
            if not u32(found.get(_FLAGS)) & _TABLE_DORMANT
        }
        bases = [
            base
            for body, found in self._dump(_GETCHAIN, 0, b"")
            if _CHAIN_HOOK in found and (body[0], found[_TABLE]) in awake
            for base in _base(body[0], found)
        ]
        return sorted(bases, key=lambda base: base.priority)

    def rules(self, chain: ChainName) -> Iterator[dict[int, bytes]]:
        """Yield the attributes of a chain's rules, in order; none when it is gone."""
        body = attribute(_RULE_TABLE, _z(chain.table.name)) + attribute(_RULE_CHAIN, _z(chain.name))
        for _, found in self._dump(_GETRULE, FAMILIES[chain.table.kind], body):
            yield found

    def set_declared(self, table: TableName, name: str) -> bytes | None:
        """Return the attributes that declare a set, None when there is none of the name."""
        for body, found in self._dump(_GETSET, FAMILIES[table.kind], attribute(_SET_TABLE, _z(table.name))):
            if text(found.get(_SET_NAME)) == name:
                return body[_HEAD.size :]
        return None

    def set_elements(self, table: TableName, name: str) -> Iterator[bytes]:
        """Yield the attributes of each element of a set."""
        asked = attribute(_ELEM_LIST_TABLE, _z(table.name)) + attribute(_ELEM_LIST_SET, _z(name))
        for _, found in self._dump(_GETSETELEM, FAMILIES[table.kind], asked):
            yield from each(found.get(_ELEM_LIST_ELEMENTS, b""))

    def _dump(self, kind: int, family: int, asked: bytes) -> Iterator[tuple[bytes, dict[int, bytes]]]:
        try:
            bodies = self._netlink.dump(_SUBSYSTEM | kind, _HEAD.pack(family, 0, 0) + asked)
        except KernelError as error:
            if error.code == errno.ENOENT:
                return
            raise
        for body in bodies:
            yield body, attributes(body, _HEAD.size)


def _z(name: str) -> bytes:
    return name.encode() + b"\0"


def _base(family: int, found: dict[int, bytes]) -> Iterator[BaseChain]:
    kind = KINDS.get(family)
    if kind is None:
        return
    hook = attributes(found[_CHAIN_HOOK])
    number = u32(hook.get(_HOOK_NUMBER))
    known = _HOOKS.get("ip" if kind in {"ip", "ip6", "inet"} else kind, ())
    if number >= len(known):
        return
    yield BaseChain(
        ChainName(TableName(kind, text(found[_TABLE])), text(found[_NAME])),
        known[number],
        int.from_bytes(hook.get(_HOOK_PRIORITY, b""), signed=True),
        drops=u32(found.get(_CHAIN_POLICY, b"\1")) == 0,
        translates=text(found.get(_CHAIN_TYPE)) == "nat",
        devices=_devices(hook) if known[number] in {Hook.INGRESS, Hook.EGRESS} else None,
    )


def _devices(hook: dict[int, bytes]) -> Ranges:
    found: Ranges = exactly(name_number(text(hook[_HOOK_DEVICE]))) if _HOOK_DEVICE in hook else NOTHING
    for name in each(hook.get(_HOOK_DEVICES, b""), _DEVICE_NAME):
        found = either(found, exactly(name_number(text(name))))
    for prefix in each(hook.get(_HOOK_DEVICES, b""), _DEVICE_PREFIX):
        found = either(found, names_from(prefix.rstrip(b"\0")))
    return found
