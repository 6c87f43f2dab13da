"""The way to each peer's public address, as the kernel's routing and IPsec policies tell it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_interface
from typing import NamedTuple

from flannel_ebpf.base.family import Address, Network, family_of
from flannel_ebpf.base.model import PathFacts, Uplink
from flannel_ebpf.kernel.netlink import xfrm
from flannel_ebpf.kernel.netlink.policy import concerns
from flannel_ebpf.kernel.netlink.route_socket import U32, Request, RouteSocket, attribute, attributes
from flannel_ebpf.kernel.netlink.routes import (
    RTA_DST,
    RTA_ENCAP,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_MULTIPATH,
    RTA_OIF,
    RTA_SRC,
    RTA_VIA,
    RTM_GETROUTE,
    RTMSG,
    RTN_UNICAST,
    KernelRoute,
    more_specific,
)
from flannel_ebpf.kernel.seen import Seen

_RTAX_MTU = 2
_FIB_MATCH = 0x2000  # RTM_F_FIB_MATCH: answer with the whole route, not with the way that it gave

Paths = Mapping[Address, PathFacts]


class Ways(NamedTuple):
    """The ways to peers: `paths` to all, `asked` those that the kernel was asked for, `tables` that count."""

    paths: Paths
    asked: Sequence[Address]
    tables: frozenset[int]


def path_facts(seen: Seen, addresses: Iterable[Address], uplink: Uplink) -> Ways:
    """Return how the kernel would send from the uplink's address to each address.

    All are of the uplink's family. An address in the uplink's own prefix, where a route says that this is its
    link and none is more specific, is on-link at the uplink's MTU and takes no request unless a rule concerns
    our packets: so nearly all nodes of one LAN. Raises KernelError.
    """
    family = family_of(uplink.ip)
    routes = seen.routes(family)
    prefix = ip_interface((uplink.ip, uplink.prefix_len)).network
    is_link = _is_link(routes, prefix, uplink.ifindex)
    exceptions = more_specific(routes, prefix) if is_link else {}
    rules = [rule for rule in seen.rules(family) if concerns(rule, uplink.ip)]
    facts: dict[Address, PathFacts] = {}
    asked = []
    near = PathFacts(uplink.mtu, on_link=True)
    base, mask, own = int(prefix.network_address), int(prefix.netmask), int(uplink.ip)
    for address in addresses:
        number = int(address)  # in integers: ipaddress's own questions take ten times as long
        inside = is_link and number & mask == base and number != own
        plain = inside and not (exceptions and _covered(address, exceptions))
        if plain and not any(rule.target is None or address in rule.target for rule in rules):
            facts[address] = near
        else:
            asked.append(address)
    many = bool(rules) or any(not route.plain for route in routes)
    facts |= _ask(seen.netlink, asked, uplink, several=many)
    tables = frozenset(rule.table for rule in rules)
    return Ways(xfrm.mark_paths(facts, uplink.ip, xfrm.outbound_policies()), asked, tables)


def ask_paths(netlink: RouteSocket, asked: Sequence[Address], uplink: Uplink) -> Paths:
    """Return the same of a few addresses, asking for each."""
    paths = _ask(netlink, asked, uplink, several=True)
    return xfrm.mark_paths(paths, uplink.ip, xfrm.outbound_policies())


def _ask(
    netlink: RouteSocket, asked: Sequence[Address], uplink: Uplink, *, several: bool
) -> dict[Address, PathFacts]:
    """Ask for each way; `several`: also whether there is more than one, of which the kernel takes turns."""
    answers = _answers(netlink, asked, uplink, 0)
    facts = {address: _facts(found, uplink) for address, found in answers}
    if several:
        whole = _answers(netlink, asked, uplink, _FIB_MATCH)
        facts |= {
            address: PathFacts(facts[address].mtu, on_link=False, kernel_only=True)
            for address, found in whole
            if RTA_MULTIPATH in found
        }
    return facts


def _answers(
    netlink: RouteSocket, asked: Sequence[Address], uplink: Uplink, flags: int
) -> Iterator[tuple[Address, dict[int, bytes]]]:
    """Yield what the kernel says of each address; nothing where it has no way, or not a usual one."""
    source, family = uplink.ip.packed, family_of(uplink.ip)
    header = RTMSG.pack(family.af, family.bits, family.bits, 0, 0, 0, 0, 0, flags)
    requests = [
        Request(RTM_GETROUTE, 0, header + attribute(RTA_DST, a.packed) + attribute(RTA_SRC, source))
        for a in asked
    ]
    for address, answer in zip(asked, netlink.exchange(requests), strict=True):
        usual = not answer.code and answer.body[7] == RTN_UNICAST
        yield address, attributes(answer.body, RTMSG.size) if usual else {}


def _facts(found: Mapping[int, bytes], uplink: Uplink) -> PathFacts:
    """Read an answer: another device, a tunnel, a route that stops packets or none are the kernel's alone."""
    metrics = attributes(found.get(RTA_METRICS, b""))
    mtu = _u32(metrics.get(_RTAX_MTU)) or uplink.mtu
    other = _u32(found.get(RTA_OIF)) != uplink.ifindex or RTA_ENCAP in found
    direct = bool(found) and RTA_GATEWAY not in found and RTA_VIA not in found
    return _path(mtu, direct and not other, other)


@lru_cache  # the ways to thousands of peers are the same few
def _path(mtu: int, on_link: bool, kernel_only: bool) -> PathFacts:
    return PathFacts(mtu, on_link, kernel_only)


def _is_link(routes: Iterable[KernelRoute], prefix: Network, ifindex: int) -> bool:
    """Say whether a prefix is the device's link: an address may have a prefix whose addresses are not."""
    dst = int(prefix.network_address), prefix.prefixlen
    return any(it.dst == dst and it.oif == ifindex and it.gateway is None and it.plain for it in routes)


def _covered(address: Address, routes: Mapping[int, Container[int]]) -> bool:
    """Say whether a route (length -> addresses) leads to the address."""
    bits, value = address.max_prefixlen, int(address)
    return any(value >> (bits - length) << (bits - length) in found for length, found in routes.items())


def _u32(payload: bytes | None) -> int:
    return int(U32.unpack(payload)[0]) if payload else 0
