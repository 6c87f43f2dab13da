"""Qdiscs, and the filters on clsact hooks, as the kernel dumps them.

Layouts: linux/rtnetlink.h (tcmsg), linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import NamedTuple

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.desired.objects import Direction
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket, attributes

HOOKS: dict[Direction, int] = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
"""Parents of filters on the two hooks of a clsact qdisc."""

_RTM_GETQDISC, _RTM_GETTFILTER = 38, 46
_TCMSG = struct.Struct("=BxxxiIII")  # family, ifindex, handle, parent, info
_TCA_KIND, _TCA_OPTIONS = 1, 2
_GONE = {errno.ENOENT, errno.ENODEV, errno.EINVAL}


class Qdisc(NamedTuple):
    """A qdisc of a device; `parent` is TC_H_ROOT for the one that all its packets meet."""

    ifindex: int
    kind: str
    parent: int


class HookFilter(NamedTuple):
    """A filter on a clsact hook; `handle` 0 is its priority's own header, `options` are its kind's."""

    handle: int
    priority: int
    options: bytes


def read_qdiscs(netlink: RouteSocket) -> Iterator[Qdisc]:
    """Yield every device's qdiscs. Raises KernelError."""
    for body in netlink.dump(_RTM_GETQDISC, _TCMSG.pack(0, 0, 0, 0, 0)):
        _, ifindex, _, parent, _ = _TCMSG.unpack_from(body)
        kind = attributes(body, _TCMSG.size).get(_TCA_KIND, b"").rstrip(b"\0").decode()
        yield Qdisc(ifindex, kind, parent)


def read_hook(netlink: RouteSocket, ifindex: int, direction: Direction) -> list[HookFilter]:
    """Return the filters on one hook; none where device or clsact are gone. Raises KernelError."""
    try:
        bodies = netlink.dump(_RTM_GETTFILTER, _TCMSG.pack(0, ifindex, 0, HOOKS[direction], 0))
    except KernelError as error:
        if error.code in _GONE:
            return []
        raise
    found = []
    for body in bodies:
        _, _, handle, _, info = _TCMSG.unpack_from(body)
        options = attributes(body, _TCMSG.size).get(_TCA_OPTIONS, b"")
        found.append(HookFilter(handle, info >> 16, options))
    return found
