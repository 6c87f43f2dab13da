"""Policy routing: the rules (`ip rule`) that may send tunnel packets elsewhere than the main table does.

Layout: linux/fib_rules.h (fib_rule_hdr, as long as rtmsg).
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network
from typing import NamedTuple

from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.kernel.netlink.route_socket import U32, RouteSocket, attributes
from flannel_ebpf.kernel.netlink.routes import RTMSG

_RTM_GETRULE = 34
_DST, _SRC, _IIFNAME, _FWMARK, _TABLE = 1, 2, 3, 10, 15
_TO_TABLE, _INVERT = 1, 2  # FR_ACT_TO_TBL, FIB_RULE_INVERT
_USUAL = {255, 254, 253}  # local, main, default


class PolicyRule(NamedTuple):
    """A rule that packets of this host may meet; `source` and `target` None: any; `table` 0: it has none."""

    source: Network | None
    target: Network | None
    table: int


def read_rules(netlink: RouteSocket, family: Family) -> Iterator[PolicyRule]:
    """Yield the rules of a family but the three that every host has. Raises KernelError.

    Rules for packets that come in at a device are left out, and those for a mark: tunnel packets carry what
    netfilter gave the pod's, and programs carry no marked ones.
    """
    for body in netlink.dump(_RTM_GETRULE, RTMSG.pack(family.af, 0, 0, 0, 0, 0, 0, 0, 0)):
        _, to_len, from_len, _, short_table, _, _, action, flags = RTMSG.unpack_from(body)
        found = attributes(body, RTMSG.size)
        table = U32.unpack(found[_TABLE])[0] if _TABLE in found else short_table
        if flags & _INVERT:  # for all others, as wg-quick has it: `not fwmark 51820 lookup 51820`
            yield PolicyRule(None, None, table if action == _TO_TABLE else 0)
            continue
        for_all = not to_len and not from_len and _IIFNAME not in found
        if action == _TO_TABLE and table in _USUAL and for_all and _FWMARK not in found:
            continue
        if found.get(_IIFNAME, b"lo\0").rstrip(b"\0") != b"lo" or any(found.get(_FWMARK, b"")):
            continue
        yield PolicyRule(
            _prefix(found.get(_SRC), from_len),
            _prefix(found.get(_DST), to_len),
            table if action == _TO_TABLE else 0,
        )


def concerns(rule: PolicyRule, source: Address) -> bool:
    """Say whether packets from `source` may meet the rule."""
    return rule.source is None or source in rule.source


def _prefix(payload: bytes | None, length: int) -> Network | None:
    return ip_network((payload, length)) if payload and length else None
