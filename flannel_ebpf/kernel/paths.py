"""The way to each peer's public address, as the kernel's routing and IPsec policies tell it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Interface

from flannel_ebpf.base.family import Address
from flannel_ebpf.base.model import PathFacts, Uplink
from flannel_ebpf.kernel.netlink import xfrm
from flannel_ebpf.kernel.netlink.route_socket import U32, Request, RouteSocket, attribute, attributes
from flannel_ebpf.kernel.netlink.routes import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_VIA,
    RTM_GETROUTE,
    RTMSG,
    more_specific,
)
from flannel_ebpf.kernel.seen import Seen

_AF_INET = 2
_RTAX_MTU = 2

Paths = Mapping[Address, PathFacts]


def path_facts(seen: Seen, addresses: Iterable[Address], uplink: Uplink, source: Address) -> Paths:
    """Return how the kernel would send from `source` to each address; one without a route is left out.

    An address in the uplink's own prefix with no more specific route is on-link at the uplink's MTU, and
    takes no request: so nearly all nodes of one LAN. Raises KernelError.
    """
    onlink = IPv4Interface((int(uplink.ip), uplink.prefix_len)).network
    exceptions = more_specific(seen.routes, onlink)
    facts = {}
    asked = []
    for address in addresses:
        if address in onlink and address != uplink.ip and not _covered(address, exceptions):
            facts[address] = PathFacts(uplink.mtu, on_link=True)
        else:
            asked.append(address)
    facts |= dict(_ask(seen.netlink, asked, uplink))
    return xfrm.mark_paths(facts, source, xfrm.outbound_policies())


def ask_paths(netlink: RouteSocket, asked: Sequence[Address], uplink: Uplink, source: Address) -> Paths:
    """Return the same of a few addresses, asking for each."""
    return xfrm.mark_paths(dict(_ask(netlink, asked, uplink)), source, xfrm.outbound_policies())


def _ask(
    netlink: RouteSocket, asked: Sequence[Address], uplink: Uplink
) -> Iterator[tuple[Address, PathFacts]]:
    header = RTMSG.pack(_AF_INET, 32, 0, 0, 0, 0, 0, 0, 0)
    requests = [Request(RTM_GETROUTE, 0, header + attribute(RTA_DST, a.packed)) for a in asked]
    for address, answer in zip(asked, netlink.exchange(requests), strict=True):
        if answer.code:
            continue
        found = attributes(answer.body, RTMSG.size)
        metrics = attributes(found.get(RTA_METRICS, b""))
        mtu = _u32(metrics.get(_RTAX_MTU)) or uplink.mtu
        yield address, PathFacts(mtu, RTA_GATEWAY not in found and RTA_VIA not in found)


def _covered(address: Address, routes: Mapping[int, Container[int]]) -> bool:
    """Say whether a route (length -> addresses) leads to the address."""
    return any(int(address) >> (32 - length) << (32 - length) in found for length, found in routes.items())


def _u32(payload: bytes | None) -> int:
    return int(U32.unpack(payload)[0]) if payload else 0
