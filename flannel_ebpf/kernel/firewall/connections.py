"""Connections that conntrack translates now, whatever the rules say: they outlive the rule that made them.

Layouts: linux/netfilter/nfnetlink_conntrack.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.desired.proof.packets import Version
from flannel_ebpf.desired.proof.ranges import Ranges, both, exactly
from flannel_ebpf.kernel.firewall.nfnetlink import NETLINK_NETFILTER
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket, attribute, attributes

_GET = 1 << 8 | 1  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_GET
_HEAD = struct.Struct("=BBH")
_AF = {4: 2, 6: 10}
_ORIGINAL, _REPLY, _STATUS, _STATUS_MASK = 1, 2, 3, 26
_TUPLE_IP = 1
_ENDS = {4: (1, 2), 6: (3, 4)}  # CTA_IP_V4_SRC and DST, CTA_IP_V6_SRC and DST
_SRC_NAT, _DST_NAT = 0x10, 0x20


def translated_pods(version: Version, pods: Ranges, others: Ranges) -> Ranges:
    """Return which of `pods` have a translated connection in which one of `others` takes part.

    Raises KernelError. None where there is no conntrack.
    """
    found: set[int] = set()
    with RouteSocket(protocol=NETLINK_NETFILTER) as asking:
        for kind in (_SRC_NAT, _DST_NAT):
            for ends in _connections(asking, version, kind):
                if both(exactly(*ends), others):
                    found |= {end for end in ends if both(exactly(end), pods)}
    return exactly(*found)


def _connections(asking: RouteSocket, version: Version, kind: int) -> Iterator[set[int]]:
    """Yield the addresses of each connection with this bit of status; old kernels answer with all."""
    bits = kind.to_bytes(4)
    asked = _HEAD.pack(_AF[version], 0, 0) + attribute(_STATUS, bits) + attribute(_STATUS_MASK, bits)
    try:
        bodies = asking.dump(_GET, asked)
    except KernelError as error:
        if error.code in {errno.EINVAL, errno.EOPNOTSUPP}:  # no conntrack here
            return
        raise
    for body in bodies:
        entry = attributes(body, _HEAD.size)
        if int.from_bytes(entry.get(_STATUS, b"")) & kind:
            yield {end for side in (_ORIGINAL, _REPLY) for end in _ends(entry.get(side, b""), version)}


def _ends(payload: bytes, version: Version) -> Iterator[int]:
    found = attributes(attributes(payload).get(_TUPLE_IP, b""))
    return (int.from_bytes(found[end]) for end in _ENDS[version] if end in found)
