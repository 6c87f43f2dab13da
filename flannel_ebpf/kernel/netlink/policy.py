"""Policy routing: the rules (`ip rule`) that may send packets elsewhere than the main table does.

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
    """A rule that packets may meet; `source` and `target` None: any; `table` 0: it has none.

    `iif` is the device by which they come in, "" any, "lo" packets of this host. `marked`: they carry a mark.
    """

    source: Network | None
    target: Network | None
    table: int
    iif: str = ""
    marked: bool = False


def read_rules(netlink: RouteSocket, family: Family) -> Iterator[PolicyRule]:
    """Yield the rules of a family but the three that every host has. Raises KernelError.

    Rules for packets that come in at a device are left out, and those for a mark: tunnel packets carry what
    netfilter gave the pod's, and programs carry no marked ones.
    """
    for rule in read_all_rules(netlink, family):
        if rule.iif in {"", "lo"} and not rule.marked:
            yield rule


def read_all_rules(netlink: RouteSocket, family: Family) -> Iterator[PolicyRule]:
    """Yield the rules of a family but the three that every host has. Raises KernelError.

    A rule for all but some, as wg-quick has it (`not fwmark 51820 lookup 51820`), counts as one for all.
    """
    for body in netlink.dump(_RTM_GETRULE, RTMSG.pack(family.af, 0, 0, 0, 0, 0, 0, 0, 0)):
        _, to_len, from_len, _, short_table, _, _, action, flags = RTMSG.unpack_from(body)
        found = attributes(body, RTMSG.size)
        table = U32.unpack(found[_TABLE])[0] if _TABLE in found else short_table
        known = table if action == _TO_TABLE else 0
        if flags & _INVERT:
            yield PolicyRule(None, None, known)
            continue
        for_all = not to_len and not from_len and _IIFNAME not in found
        if known in _USUAL and for_all and _FWMARK not in found:
            continue
        yield PolicyRule(
            _prefix(found.get(_SRC), from_len),
            _prefix(found.get(_DST), to_len),
            known,
            found.get(_IIFNAME, b"").rstrip(b"\0").decode(errors="replace"),
            any(found.get(_FWMARK, b"")),
        )


def concerns(rule: PolicyRule, source: Address) -> bool:
    """Say whether packets from `source` may meet the rule."""
    return rule.source is None or source in rule.source


def _prefix(payload: bytes | None, length: int) -> Network | None:
    return ip_network((payload, length)) if payload and length else None
