"""Routes, neighbours and FDB entries as rtnetlink requests; neighbours and FDB entries as dumped.

There is one of each per peer, and thousands of peers: 15,000 of them are programmed in well under half a
second. Layout: linux/neighbour.h (ndmsg).
"""

from __future__ import annotations

import struct
from collections.abc import Container
from ipaddress import ip_address

from flannel_ebpf.base.family import Address, Family, family_of
from flannel_ebpf.base.model import Mac
from flannel_ebpf.desired.objects import FdbEntry, Neighbour, Route
from flannel_ebpf.kernel.netlink.route_socket import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    U32,
    Request,
    RouteSocket,
    attribute,
    attributes,
)
from flannel_ebpf.kernel.netlink.routes import (
    RT_SCOPE_NOWHERE,
    RT_SCOPE_UNIVERSE,
    RTM_DELROUTE,
    RTM_NEWROUTE,
    route_body,
)

Bulk = Route | Neighbour | FdbEntry

_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30

_NDMSG = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type

_AF_BRIDGE = 7
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_NUD_PERMANENT, _NUD_FAILED, _NUD_INCOMPLETE, _NTF_SELF = 0x80, 0x20, 0x01, 0x02

_MAKE = NLM_F_ACK | NLM_F_CREATE
_REPLACE = _MAKE | NLM_F_REPLACE


def put_request(obj: Bulk, old: object, ifindex: int) -> Request:
    """Return the request that makes `obj`, in the place of `old` if that is not None; `ifindex` 0: no device.

    A route in whose place one stands that is not ours is refused (EEXIST): it may be the uplink's network,
    which nobody would make again. Neighbours and FDB entries stand on our device.
    """
    if isinstance(obj, Route):
        flags = _MAKE | NLM_F_EXCL if old is None else _REPLACE
        return Request(RTM_NEWROUTE, flags, route_body(obj, ifindex, RT_SCOPE_UNIVERSE))
    return Request(_RTM_NEWNEIGH, _REPLACE, _neighbour_body(obj, ifindex))


def delete_request(obj: Bulk, ifindex: int) -> Request:
    """Return the request that removes exactly `obj`: a route only with its own gateway and protocol."""
    if isinstance(obj, Route):
        # RT_SCOPE_NOWHERE matches every scope, as `ip route del` does it.
        return Request(RTM_DELROUTE, NLM_F_ACK, route_body(obj, ifindex, RT_SCOPE_NOWHERE))
    return Request(_RTM_DELNEIGH, NLM_F_ACK, _neighbour_body(obj, ifindex))


def in_the_way(old: object, new: Bulk) -> Route | None:
    """Return the route that must go before `new` can take its place, None as nearly always.

    IPv6 looks the gateway of an onlink route up and refuses it when the answer is another device
    (ip6_route_check_nh_onlink); ours is an address of its own destination.
    """
    if not (isinstance(old, Route) and isinstance(new, Route) and new.onlink and new.dst.version == 6):
        return None
    return old if old.ifname != new.ifname else None


Notice = tuple[int, bytes, bytes]
"""Message type, MAC and address of what the kernel tells of an FDB entry; of a neighbour, without MAC."""


def notice(kind: int, body: bytes) -> Notice:
    """Return what an RTM_NEWNEIGH or RTM_DELNEIGH tells."""
    found = attributes(body, _NDMSG.size)
    mac = found.get(_NDA_LLADDR, b"") if body[0] == _AF_BRIDGE else b""
    return kind, mac, found.get(_NDA_DST, b"")


def echo(obj: Bulk, *, gone: bool) -> Notice | None:
    """Return the notice that the kernel sends in its own name when we make or remove `obj`.

    None when it names us: an FDB entry never does (vxlan_fdb_notify), a neighbour not when it goes.
    """
    if isinstance(obj, FdbEntry):
        return _RTM_DELNEIGH if gone else _RTM_NEWNEIGH, obj.mac.octets, obj.dst.packed
    return (_RTM_DELNEIGH, b"", obj.ip.packed) if gone and isinstance(obj, Neighbour) else None


def _neighbour_body(obj: Neighbour | FdbEntry, ifindex: int) -> bytes:
    if isinstance(obj, FdbEntry):
        header = _NDMSG.pack(_AF_BRIDGE, ifindex, _NUD_PERMANENT, _NTF_SELF, 0)
        dst = obj.dst
    else:
        header = _NDMSG.pack(family_of(obj.ip).af, ifindex, _NUD_PERMANENT, 0, 0)
        dst = obj.ip
    return header + attribute(_NDA_DST, dst.packed) + attribute(_NDA_LLADDR, obj.mac.octets)


TOLD = {Family.V4: 36, Family.V6: 48}
"""Octets of a neighbour or FDB entry as dumped before what changes by itself: its times and uses."""


def dump_neighbours(netlink: RouteSocket, ifindex: int, family: Family) -> list[bytes]:
    """Return what the kernel tells of a device's neighbours of one family. Raises KernelError."""
    query = _NDMSG.pack(family.af, 0, 0, 0, 0) + attribute(_NDA_IFINDEX, U32.pack(ifindex))
    return netlink.dump(_RTM_GETNEIGH, query)


def dump_fdb(netlink: RouteSocket, ifindex: int) -> list[bytes]:
    """Return what the kernel tells of a device's FDB. Raises KernelError."""
    return netlink.dump(_RTM_GETNEIGH, _NDMSG.pack(_AF_BRIDGE, ifindex, 0, 0, 0))


def as_neighbour(body: bytes, ifname: str, ifindex: int) -> Neighbour | None:
    """Return a permanent neighbour of the device, None for anything else."""
    _, index, state, _, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    mac = found.get(_NDA_LLADDR, b"")
    if index != ifindex or not state & _NUD_PERMANENT or len(mac) != 6:
        return None
    return Neighbour(ifname, ip_address(found[_NDA_DST]), Mac(mac))


def as_fdb_entry(body: bytes, ifname: str, ifindex: int) -> FdbEntry | None:
    """Return a vxlan device's permanent entry of a unicast, non-zero MAC with a destination, or None."""
    _, index, state, flags, _ = _NDMSG.unpack_from(body)
    found = attributes(body, _NDMSG.size)
    mac, dst = found.get(_NDA_LLADDR, b""), found.get(_NDA_DST, b"")
    if index != ifindex or not state & _NUD_PERMANENT or not flags & _NTF_SELF:
        return None
    if len(mac) != 6 or not any(mac) or mac[0] & 1 or not dst:
        return None
    return FdbEntry(ifname, Mac(mac), ip_address(dst))


def read_dynamic(netlink: RouteSocket, devices: Container[int], family: Family) -> dict[Address, Mac | None]:
    """Return what the kernel has learned of addresses behind devices: their MACs, None for a silent one."""
    known: dict[Address, Mac | None] = {}
    for body in netlink.dump(_RTM_GETNEIGH, _NDMSG.pack(family.af, 0, 0, 0, 0)):
        _, index, state, _, _ = _NDMSG.unpack_from(body)
        if index not in devices:  # a host may have a hundred thousand others
            continue
        found = attributes(body, _NDMSG.size)
        dst, mac = found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")
        if state & _NUD_FAILED:
            known[family.address(dst)] = None
        elif len(mac) == 6 and not state & _NUD_INCOMPLETE:
            known[family.address(dst)] = Mac(mac)
    return known
