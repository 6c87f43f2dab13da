"""xtables' targets, as their structures lie in the kernel. One that is not known here touches the packet.

Structures: linux/netfilter/xt_*.h, linux/netfilter/nf_nat.h; addresses in network byte order.
"""

from __future__ import annotations

import struct

from flannel_ebpf.desired.proof.packets import Version
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges
from flannel_ebpf.desired.proof.rules import QUEUE, Accept, Drop, SetMark, Step, Touch, Translate, Verdict

_NO_EFFECT = {"LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "log", "nflog"}
_ENDS = {"REJECT": "reject", "NFQUEUE": QUEUE, "SYNPROXY": "synproxy", "TPROXY": "tproxy", "DROP": "drop"}
_ONCE = {"CONNMARK", "CONNSECMARK", "SECMARK", "TCPMSS", "HMARK"}
"""What flows do not escape: it is done to their first packets and holds.

CT is none: of a connection whose one side is not tracked, conntrack takes up the other in the middle, and
translates it from there on.
"""
_SEEN = {"TTL", "HL", "DSCP", "TOS"}
"""What alters a field without which no flow is learned."""
_NAT = {"DNAT", "SNAT", "MASQUERADE", "REDIRECT", "NETMAP"}
_MAP_IPS = 1
_MARK_REVISION = 2


def decode(name: str, revision: int, info: bytes, version: Version) -> tuple[list[Step], Verdict]:
    """Return the steps and the verdict of a target; None: the packet goes on behind the rule."""
    if name in _NO_EFFECT:
        return [], None
    if name in _ENDS:
        return [], Drop(_ENDS[name])
    if name in _NAT:
        to = None if name == "NETMAP" else NOTHING
        if name in {"DNAT", "SNAT"}:
            to = _translated_to(revision, info, version)
        return [Translate(name.lower(), to)], Accept()
    return [_act(name, revision, info)], None


def _act(name: str, revision: int, info: bytes) -> Step:
    if name == "MARK" and revision == _MARK_REVISION:
        mark, mask = struct.unpack_from("=II", info)
        return SetMark(~mask & 0xFFFFFFFF, mark)
    return Touch(name, each=name not in _ONCE and name not in _SEEN)


def _translated_to(revision: int, info: bytes, version: Version) -> Ranges | None:
    """Return the addresses of a nf_nat_range (revisions 1, 2), or of its IPv4 form behind a count (0)."""
    if revision == 0:
        count, flags = struct.unpack_from("=II", info)
        if count != 1:
            return None
        first, last = info[8:12], info[12:16]
    else:
        size = 4 if version == 4 else 16
        flags = struct.unpack_from("=I", info)[0]
        first, last = info[4 : 4 + size], info[20 : 20 + size]
    if not flags & _MAP_IPS:
        return NOTHING
    return ((int.from_bytes(first), int.from_bytes(last)),)
