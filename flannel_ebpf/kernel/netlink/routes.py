"""Routes of the main table as rtnetlink messages: those that stand, and requests for ours.

Layout: linux/rtnetlink.h (rtmsg). Packed and parsed by hand: there is one route per peer.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.desired.objects import LAST_METRIC, ROUTE_PROTOCOL, Route, Scope
from flannel_ebpf.kernel.netlink.recognised import Recognised
from flannel_ebpf.kernel.netlink.route_socket import U32, RouteSocket, attribute, attributes

RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTMSG = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags
RTA_DST, RTA_SRC, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_METRICS = 1, 2, 4, 5, 6, 8
RTA_MULTIPATH, RTA_TABLE, RTA_VIA, RTA_ENCAP = 9, 15, 18, 22
RTPROT_KERNEL, RTPROT_BOOT, RTN_UNICAST, RTN_BLACKHOLE = 2, 3, 1, 6
RT_TABLE_MAIN, _RT_TABLE_LOCAL = 254, 255
_RTNH_F_ONLINK = 4
RT_SCOPE_UNIVERSE, RT_SCOPE_NOWHERE = 0, 255

_ATTRIBUTE = struct.Struct("=HH")  # rtattr: length, type
_PLAIN_SIZE = 60
"""Octets of an IPv4 route with destination, metric, gateway, source, one device; more of it is parsed."""


class KernelRoute(NamedTuple):
    """A route of the main table as dumped; `dst` as (address, length), `gateway` None: absent.

    `kind` is RTN_*, `priority` 0 for what a route gets that asks for none. `plain`: one next hop, reached by
    its own family, for every type of service; all of ours are.
    """

    dst: tuple[int, int]
    gateway: bytes | None
    oif: int
    protocol: int
    priority: int
    kind: int
    onlink: bool
    plain: bool


_USUAL_METRIC = {Family.V4: 0, Family.V6: 1024}
"""Metric of a route that asks for none (IP6_RT_PRIO_USER)."""


def read_main_table(
    netlink: RouteSocket,
    family: Family,
    known: Recognised[KernelRoute] | None = None,
    within: Iterable[Network] = (),
) -> list[KernelRoute]:
    """Return the main table's routes of one family, in the order of lookup. Raises KernelError.

    With `within`, those routes alone that lie inside one of these networks, the default routes, and those of
    several next hops: a host may have a hundred thousand more. `known` is what the last dump told.
    """
    inside = [(int(one.network_address), one.prefixlen) for one in within if family_of(one) is family]
    bodies: Iterable[bytes] = _dump(netlink, family)
    if inside:
        of_interest = _OfInterest(family, inside)
        bodies = [body for body in bodies if of_interest(body)]
    return (known or Recognised()).read(bodies, partial(_parse, family))


class _OfInterest:
    """Looks at the destination where the kernel puts it: behind the table's number."""

    def __init__(self, family: Family, inside: Iterable[tuple[int, int]]) -> None:
        self._size = family.bits // 8
        self._header = _ATTRIBUTE.pack(4 + self._size, RTA_DST)
        self._plain = _PLAIN_SIZE + 3 * (self._size - 4)
        self._inside = [
            (length, base >> family.bits - length, family.bits - length) for base, length in inside
        ]

    def __call__(self, body: bytes) -> bool:
        if body[1] == 0 or body[20:24] != self._header or len(body) > self._plain:
            return True
        address = int.from_bytes(body[24 : 24 + self._size], "big")
        return any(body[1] >= length and address >> host == start for length, start, host in self._inside)


def _parse(family: Family, body: bytes) -> KernelRoute | None:
    _, length, _, tos, table, protocol, _, kind, flags = RTMSG.unpack_from(body)
    if table != RT_TABLE_MAIN:
        return None
    found = attributes(body, RTMSG.size)
    priority = U32.unpack(found.get(RTA_PRIORITY, b"\0\0\0\0"))[0]
    return KernelRoute(
        (int.from_bytes(found.get(RTA_DST, b""), "big"), length),
        found.get(RTA_GATEWAY),
        U32.unpack(found.get(RTA_OIF, b"\0\0\0\0"))[0],
        protocol,
        0 if priority == _USUAL_METRIC[family] else priority,
        kind,
        bool(flags & _RTNH_F_ONLINK),
        not tos and RTA_MULTIPATH not in found and RTA_VIA not in found,
    )


def _dump(netlink: RouteSocket, family: Family) -> list[bytes]:
    try:
        return netlink.dump(RTM_GETROUTE, RTMSG.pack(family.af, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0))
    except KernelError as error:
        if error.code == errno.ENOENT:  # a host without any address of the family has no such table yet
            return []
        raise


def read_local_table(netlink: RouteSocket, family: Family) -> Iterator[tuple[int, tuple[int, int]]]:
    """Yield (RTN_*, (address, length)) of what is this host's own, or is broadcast to. Raises KernelError."""
    for body, found in _of_table(netlink, family, _RT_TABLE_LOCAL):
        yield body[7], (int.from_bytes(found.get(RTA_DST, b""), "big"), body[1])


def destinations(netlink: RouteSocket, family: Family, table: int) -> Iterator[tuple[int, int]]:
    """Yield the (address, length) of every route in a table. Raises KernelError."""
    for body, found in _of_table(netlink, family, table):
        yield int.from_bytes(found.get(RTA_DST, b""), "big"), body[1]


def _of_table(netlink: RouteSocket, family: Family, table: int) -> Iterator[tuple[bytes, dict[int, bytes]]]:
    short = table if table < 256 else 0
    asked = RTMSG.pack(family.af, 0, 0, 0, short, 0, 0, 0, 0) + attribute(RTA_TABLE, U32.pack(table))
    try:
        bodies = netlink.dump(RTM_GETROUTE, asked)
    except KernelError as error:
        if error.code == errno.ENOENT:  # no such table yet
            return
        raise
    for body in bodies:
        found = attributes(body, RTMSG.size)
        if U32.unpack(found.get(RTA_TABLE, U32.pack(body[4])))[0] == table:  # older kernels answer with all
            yield body, found


def more_specific(routes: Iterable[KernelRoute], network: Network) -> dict[int, set[int]]:
    """Return the routes of any kind strictly inside `network`: length -> addresses."""
    inside: dict[int, set[int]] = {}
    base, mask, bits = int(network.network_address), int(network.netmask), network.prefixlen
    for route in routes:
        address, length = route.dst
        if length > bits and address & mask == base:
            inside.setdefault(length, set()).add(address)
    return inside


def own_routes(
    routes: Iterable[KernelRoute],
    scope: Scope,
    names: Mapping[int, str],
    wanted: Mapping[Network, Address | None],
    laid: Container[Network],
    make: Callable[[KernelRoute, str], Route],
) -> list[Route]:
    """Return those of one family's routes that are ours, and those at a `wanted` destination to be adopted.

    Ours: inside Network, with our protocol number or on the overlay device. To adopt: the same destination
    as a wanted one and RTPROT_BOOT, as of everybody who says nothing. And it is flanneld's as far as can be
    seen: a blackhole, on a device of flannel's (another backend's, say), or by way of the node's address,
    which `wanted` names (None: any); or it took the place of ours: `laid` has the destination.
    `make` is as_route, or remembers what it made.
    """
    network, bits = int(scope.network.network_address), scope.network.prefixlen
    mask = int(scope.network.netmask)
    family = family_of(scope.network)
    want = {(int(dst.network_address), dst.prefixlen): dst for dst in wanted if dst.version == family}

    def flannelds(route: KernelRoute, ifname: str, dst: Network) -> bool:
        by = wanted[dst]
        through = by is None or route.gateway == by.packed
        return through or ifname.startswith("flannel") or route.kind == RTN_BLACKHOLE or dst in laid

    found: dict[tuple[tuple[int, int], int], Route] = {}
    for route in routes:
        address, length = route.dst
        if length < bits or address & mask != network or route.protocol == RTPROT_KERNEL:
            continue
        if route.kind not in (RTN_UNICAST, RTN_BLACKHOLE):
            continue
        if not route.plain and route.protocol != ROUTE_PROTOCOL:  # else somebody added a next hop to ours
            continue
        if route.priority and (route.priority, route.protocol) != (LAST_METRIC, ROUTE_PROTOCOL):
            continue
        blackhole = route.kind == RTN_BLACKHOLE
        ifname = "" if blackhole else names.get(route.oif, "")  # IPv6's are on lo
        ours = route.protocol == ROUTE_PROTOCOL or (scope.overlay != "" and ifname == scope.overlay)
        adoptable = (
            route.protocol == RTPROT_BOOT
            and length > bits
            and route.dst in want
            and flannelds(route, ifname, want[route.dst])
        )
        if (ours or adoptable) and (route.dst, route.priority) not in found:
            found[route.dst, route.priority] = make(route, ifname)
    return list(found.values())


def as_route(family: Family, route: KernelRoute, ifname: str) -> Route:
    """Return a route as the object that we make."""
    return Route(
        family.network(*route.dst),
        family.address(route.gateway) if route.gateway else None,
        ifname,
        route.onlink,
        route.kind == RTN_BLACKHOLE,
        route.protocol,
        route.priority,
    )


def route_body(route: Route, ifindex: int, scope: int) -> bytes:
    """Return the body of a request that makes or removes the route; `ifindex` 0: no device."""
    kind = RTN_BLACKHOLE if route.blackhole else RTN_UNICAST
    flags = _RTNH_F_ONLINK if route.onlink else 0
    length, family = route.dst.prefixlen, family_of(route.dst)
    header = RTMSG.pack(family.af, length, 0, 0, RT_TABLE_MAIN, route.protocol, scope, kind, flags)
    body = header + attribute(RTA_DST, route.dst.network_address.packed)
    if route.gateway is not None:
        body += attribute(RTA_GATEWAY, route.gateway.packed)
    if ifindex:
        body += attribute(RTA_OIF, U32.pack(ifindex))
    metric = route.metric or _USUAL_METRIC[family]
    if metric:
        body += attribute(RTA_PRIORITY, U32.pack(metric))
    return body
