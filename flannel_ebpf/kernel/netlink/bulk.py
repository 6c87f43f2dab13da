"""Routes, neighbours and FDB entries as rtnetlink messages, packed and parsed by hand.

There is one of each per peer, and thousands of peers: 15,000 of them are programmed in well under half a
second. Layouts: linux/rtnetlink.h (rtmsg), linux/neighbour.h (ndmsg).
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterator, Mapping
from collections.abc import Set as AbstractSet
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_ebpf.base.model import Mac
from flannel_ebpf.desired.objects import LAST_METRIC, ROUTE_PROTOCOL, FdbEntry, Neighbour, Route, Scope
from flannel_ebpf.kernel.netlink.route_socket import (
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_REPLACE,
    Request,
    RouteSocket,
    attribute,
    attributes,
)

Bulk = Route | Neighbour | FdbEntry

_RTM_NEWROUTE, _RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
_RTM_NEWNEIGH, _RTM_DELNEIGH, _RTM_GETNEIGH = 28, 29, 30

RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
_NDMSG = struct.Struct("=BxxxiHBB")  # family, ifindex, state, flags, type
U32 = struct.Struct("=I")

_AF_INET, _AF_BRIDGE = 2, 7
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS, RTA_MULTIPATH, RTA_VIA = 1, 4, 5, 6, 8, 9, 18
_RT_TABLE_MAIN, RTPROT_KERNEL, _RTN_UNICAST, _RTN_BLACKHOLE, _RTNH_F_ONLINK = 254, 2, 1, 6, 4
_RT_SCOPE_UNIVERSE, _RT_SCOPE_NOWHERE = 0, 255
_NDA_DST, _NDA_LLADDR, _NDA_IFINDEX = 1, 2, 8
_NUD_PERMANENT, _NUD_FAILED, _NUD_INCOMPLETE, _NTF_SELF = 0x80, 0x20, 0x01, 0x02

_KEPT = 1 << 15

_PUT = NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE


def put_request(obj: Bulk, ifindex: int) -> Request:
    """Return the request that makes `obj` so, whatever was under its key before; `ifindex` 0: no device."""
    if isinstance(obj, Route):
        return Request(_RTM_NEWROUTE, _PUT, _route_body(obj, ifindex, _RT_SCOPE_UNIVERSE))
    return Request(_RTM_NEWNEIGH, _PUT, _neighbour_body(obj, ifindex))


def delete_request(obj: Bulk, ifindex: int) -> Request:
    """Return the request that removes exactly `obj`: a route only with its own gateway and protocol."""
    if isinstance(obj, Route):
        # RT_SCOPE_NOWHERE matches every scope, as `ip route del` does it.
        return Request(_RTM_DELROUTE, NLM_F_ACK, _route_body(obj, ifindex, _RT_SCOPE_NOWHERE))
    return Request(_RTM_DELNEIGH, NLM_F_ACK, _neighbour_body(obj, ifindex))


def _route_body(route: Route, ifindex: int, scope: int) -> bytes:
    kind = _RTN_BLACKHOLE if route.blackhole else _RTN_UNICAST
    flags = _RTNH_F_ONLINK if route.onlink else 0
    length = route.dst.prefixlen
    header = RTMSG.pack(_AF_INET, length, 0, 0, _RT_TABLE_MAIN, route.protocol, scope, kind, flags)
    body = header + attribute(RTA_DST, route.dst.network_address.packed)
    if route.gateway is not None:
        body += attribute(RTA_GATEWAY, route.gateway.packed)
    if ifindex:
        body += attribute(RTA_OIF, U32.pack(ifindex))
    if route.metric:
        body += attribute(RTA_PRIORITY, U32.pack(route.metric))
    return body


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
        header = _NDMSG.pack(_AF_INET, ifindex, _NUD_PERMANENT, 0, 0)
        dst = obj.ip
    return header + attribute(_NDA_DST, dst.packed) + attribute(_NDA_LLADDR, obj.mac.octets)


class KernelRoute(NamedTuple):
    """A unicast or blackhole route of the main table as dumped; `dst` as (address, length), None: absent."""

    dst: tuple[int, int]
    gateway: bytes | None
    oif: int
    protocol: int
    priority: int
    blackhole: bool
    onlink: bool


def read_main_table(netlink: RouteSocket, *, min_length: int = 0) -> Iterator[KernelRoute]:
    """Yield the main table's IPv4 routes of at least `min_length` bits, in the order of lookup.

    Multipath routes and routes through an IPv6 gateway are nobody's we know, and left out.
    """
    query = RTMSG.pack(_AF_INET, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
    for body in netlink.dump(RTM_GETROUTE, query):
        _, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(body)
        if (
            length < min_length
            or tos
            or table != _RT_TABLE_MAIN
            or kind not in (_RTN_UNICAST, _RTN_BLACKHOLE)
        ):
            continue
        found = attributes(body, RTMSG.size)
        if RTA_MULTIPATH in found or RTA_VIA in found:
            continue
        yield KernelRoute(
            (int.from_bytes(found.get(RTA_DST, b""), "big"), length),
            found.get(RTA_GATEWAY),
            U32.unpack(found.get(RTA_OIF, b"\0\0\0\0"))[0],
            protocol,
            U32.unpack(found.get(RTA_PRIORITY, b"\0\0\0\0"))[0],
            kind == _RTN_BLACKHOLE,
            bool(flags & _RTNH_F_ONLINK),
        )


def more_specific(netlink: RouteSocket, network: IPv4Network) -> dict[int, set[int]]:
    """Return the main table's routes of any kind strictly inside `network`: length -> addresses."""
    inside: dict[int, set[int]] = {}
    base, mask, bits = int(network.network_address), int(network.netmask), network.prefixlen
    for body in netlink.dump(RTM_GETROUTE, RTMSG.pack(_AF_INET, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)):
        length = body[1]
        if length > bits and body[4] == _RT_TABLE_MAIN:
            address = int.from_bytes(attributes(body, RTMSG.size).get(RTA_DST, b""), "big")
            if address & mask == base:
                inside.setdefault(length, set()).add(address)
    return inside


def read_routes(
    netlink: RouteSocket, scope: Scope, names: Mapping[int, str], wanted: AbstractSet[IPv4Network]
) -> list[Route]:
    """Return the routes that are ours, and those at a destination in `wanted` that we may adopt.

    Ours: inside Network, with our protocol number or on the overlay device. To adopt (flanneld's): the
    same destination as a wanted one, on the uplink or a blackhole. The kernel's own routes never count.
    """
    network, bits = int(scope.network.network_address), scope.network.prefixlen
    mask = int(scope.network.netmask)
    want = {(int(dst.network_address), dst.prefixlen) for dst in wanted}
    found: dict[tuple[tuple[int, int], int], Route] = {}
    for route in read_main_table(netlink, min_length=bits):
        if route.dst[0] & mask != network or route.protocol == RTPROT_KERNEL:
            continue
        if route.priority and (route.priority, route.protocol) != (LAST_METRIC, ROUTE_PROTOCOL):
            continue
        ifname = names.get(route.oif, "")
        ours = route.protocol == ROUTE_PROTOCOL or (scope.overlay != "" and ifname == scope.overlay)
        adoptable = (
            route.dst in want and route.dst[1] > bits and (route.oif == scope.uplink or route.blackhole)
        )
        if (ours or adoptable) and (route.dst, route.priority) not in found:
            found[route.dst, route.priority] = _route(
                route.dst,
                route.gateway,
                ifname,
                route.onlink,
                route.blackhole,
                route.protocol,
                route.priority,
            )
    return list(found.values())


def read_neighbours(netlink: RouteSocket, ifname: str, ifindex: int) -> Iterator[Neighbour]:
    """Yield the permanent IPv4 neighbours of a device."""
    query = _NDMSG.pack(_AF_INET, 0, 0, 0, 0) + attribute(_NDA_IFINDEX, U32.pack(ifindex))
    for index, state, _, dst, mac in _dump_neighbours(netlink, query):
        if index == ifindex and state & _NUD_PERMANENT and len(mac) == 6:
            yield _neighbour(ifname, dst, mac)


def read_dynamic(netlink: RouteSocket, devices: Container[int]) -> dict[IPv4Address, Mac | None]:
    """Return what ARP has learned of addresses behind devices: their MACs, None for a silent one."""
    known: dict[IPv4Address, Mac | None] = {}
    for index, state, _, dst, mac in _dump_neighbours(netlink, _NDMSG.pack(_AF_INET, 0, 0, 0, 0)):
        if index not in devices:
            continue
        if state & _NUD_FAILED:
            known[IPv4Address(dst)] = None
        elif len(mac) == 6 and not state & _NUD_INCOMPLETE:
            known[IPv4Address(dst)] = Mac(mac)
    return known


def read_fdb(netlink: RouteSocket, ifname: str, ifindex: int) -> Iterator[FdbEntry]:
    """Yield a vxlan device's permanent entries of unicast, non-zero MACs with an IPv4 destination."""
    for index, state, flags, dst, mac in _dump_neighbours(netlink, _NDMSG.pack(_AF_BRIDGE, ifindex, 0, 0, 0)):
        if index != ifindex or not state & _NUD_PERMANENT or not flags & _NTF_SELF:
            continue
        if len(mac) == 6 and any(mac) and not mac[0] & 1 and len(dst) == 4:
            yield _fdb_entry(ifname, mac, dst)


def _dump_neighbours(netlink: RouteSocket, query: bytes) -> Iterator[tuple[int, int, int, bytes, bytes]]:
    """Yield ifindex, state, flags, NDA_DST and NDA_LLADDR of what a dump holds."""
    for body in netlink.dump(_RTM_GETNEIGH, query):
        _, index, state, flags, _ = _NDMSG.unpack_from(body)
        found = attributes(body, _NDMSG.size)
        yield index, state, flags, found.get(_NDA_DST, b""), found.get(_NDA_LLADDR, b"")


# Building thousands of addresses costs more than reading them from the kernel, and from pass to pass they
# are the same: what was built is kept.


@lru_cache(_KEPT)
def _route(
    dst: tuple[int, int],
    gateway: bytes | None,
    ifname: str,
    onlink: bool,
    blackhole: bool,
    protocol: int,
    metric: int,
) -> Route:
    via = IPv4Address(gateway) if gateway else None
    return Route(IPv4Network(dst), via, ifname, onlink, blackhole, protocol, metric)


@lru_cache(_KEPT)
def _neighbour(ifname: str, dst: bytes, mac: bytes) -> Neighbour:
    return Neighbour(ifname, IPv4Address(dst), Mac(mac))


@lru_cache(_KEPT)
def _fdb_entry(ifname: str, mac: bytes, dst: bytes) -> FdbEntry:
    return FdbEntry(ifname, Mac(mac), IPv4Address(dst))
