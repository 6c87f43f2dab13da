"""Which interface carries the overlay: flannel's rules (pkg/ipmatch/match.go, pkg/ip/iface.go, main.go)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import ip_address, ip_interface

from flannel_ebpf.base import family
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Family, Interface, family_of
from flannel_ebpf.base.model import Uplink
from flannel_ebpf.base.regex import compile_go
from flannel_ebpf.kernel.netlink.links import Address, Link, uplink
from flannel_ebpf.kernel.netlink.route_socket import U32, Request, attribute, attributes
from flannel_ebpf.kernel.netlink.routes import RTA_DST, RTA_OIF, RTM_GETROUTE, RTMSG
from flannel_ebpf.kernel.seen import Seen

log = logging.getLogger(__name__)

_RTA_PREFSRC = 7
_LOOPBACK = 1  # its ifindex, in every namespace
_IFA_F_TEMPORARY, _IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x01, 0x08, 0x20, 0x80

PUBLIC_IP_FLAGS = {Family.V4: "--public-ip", Family.V6: "--public-ipv6"}

Uplinks = tuple[Uplink, ...]
"""One interface, with an address of each family that was asked for."""

_Attempt = tuple[str, str, Callable[[], Uplinks]]
"""A flag, its value, and what finds the uplink that it names or raises ConfigError."""


def find_uplinks(
    seen: Seen,
    families: Sequence[Family] = (Family.V4,),
    iface: Sequence[str] = (),
    iface_regex: Sequence[str] = (),
    can_reach: str = "",
    public_ips: Mapping[Family, family.Address] | None = None,
) -> Uplinks:
    """Return the interface that the flags choose, with its address of each of `families`, in that order.

    Tried in order: each `iface` (an address, else a name), each `iface_regex` (addresses, then names),
    `can_reach`; "" among the first two stands for the default route's interface. With none of them: the owner
    of the first of `public_ips` if given, else the default route's interface, which for two families must be
    one and the same. Raises ConfigError, whose text has the reason against each one that was tried.
    """
    refused: list[ConfigError] = []
    host = _Host(seen, families, public_ips or {})
    for flag, value, find in host.attempts(iface, iface_regex, can_reach):
        try:
            found = find()
        except ConfigError as error:
            refused.append(error)
            continue
        for other in refused:
            log.warning("%s; %s %s is taken", other, flag, value)
        return found
    if len(refused) == 1:
        raise refused[0]
    tried = ", ".join(f"{error.source}={error.value}" for error in refused)
    reasons = "; ".join(f"{error.value} is not {error.expected}" for error in refused)
    raise ConfigError("uplink", tried, f"one that is there: {reasons}; there is {host.inventory()}")


def follow(previous: Uplink, links: Mapping[int, Link], addresses: Sequence[Address]) -> Uplink | None:
    """Return the uplink as it is now, None when its address is gone from this host.

    The address is what others know. It stays where it was, else on an interface of the same name (the NIC was
    made anew), else on the bridge or bond that the interface became a port of, else on any other. An address
    that was a route's source, and never stood on the interface, keeps it.
    """
    holders = [a for a in addresses if a.interface.ip == previous.ip and a.ifindex in links]
    link = links.get(previous.ifindex)
    for holder in holders:
        there = links[holder.ifindex]
        if (
            there is link
            or (link and there.index == link.master)
            or (not link and there.name == previous.name)
        ):
            return uplink(there, holder.interface)
    if holders and link and previous.prefix_len == previous.ip.max_prefixlen:
        return uplink(link, ip_interface(previous.ip))
    others = (holder for holder in holders if holder.ifindex != _LOOPBACK)
    return next((uplink(links[holder.ifindex], holder.interface) for holder in others), None)


class _Host:
    """The interfaces of this namespace as they were seen, for a node of these families."""

    def __init__(
        self, seen: Seen, families: Sequence[Family], public_ips: Mapping[Family, family.Address]
    ) -> None:
        self._seen = seen
        self._families = families
        self._public_ips = public_ips
        self._links = seen.links
        self._addresses = [address for one in families for address in seen.addresses(one)]

    def inventory(self) -> str:
        """Say what there is, for an error message."""
        names = {link.index: link.name for link in self._links.values()}
        there = [f"{names.get(a.ifindex, '?')} {a.interface}" for a in self._addresses]
        return ", ".join(there) or f"no interface has an {self._words} address"

    @property
    def _words(self) -> str:
        return " or ".join(map(str, self._families))

    def attempts(
        self, iface: Sequence[str], iface_regex: Sequence[str], can_reach: str
    ) -> Iterator[_Attempt]:
        """Yield what is to be tried, in order."""
        for text in iface:
            yield "--iface", text, partial(self._by_text, "--iface", text)
        for pattern in iface_regex:
            yield "--iface-regex", pattern, partial(self._by_regex, "--iface-regex", pattern)
        if can_reach:
            yield "--iface-can-reach", can_reach, partial(self._by_route, "--iface-can-reach", can_reach)
        if not (iface or iface_regex or can_reach):
            given = [one for one in self._families if one in self._public_ips]
            text = str(self._public_ips[given[0]]) if given else ""
            flag = PUBLIC_IP_FLAGS[given[0]] if given else "default route"
            yield flag, text, partial(self._by_text, flag, text)

    def _by_text(self, flag: str, text: str) -> Uplinks:
        """Return the interface with this address, and that address; else of this name, with its best ones."""
        if not text:
            return self._by_default_route()
        try:
            wanted = ip_address(text)
        except ValueError:
            found = next((link for link in self._links.values() if link.name == text), None)
            if found is None:
                raise ConfigError(flag, text, f"a name or address among {self.inventory()}") from None
            return self._with_addresses(flag, text, found)
        for address in self._in_order():
            if address.interface.ip == wanted:
                return self._with_addresses(flag, text, self._links[address.ifindex], address.interface)
        beside = ", or --iface beside it when behind NAT" if flag in PUBLIC_IP_FLAGS.values() else ""
        raise ConfigError(flag, text, f"an address of this host ({self.inventory()}){beside}")

    def _by_regex(self, flag: str, pattern: str) -> Uplinks:
        """Return the first interface with matching addresses of all families, else of one, else its name."""
        if not pattern:
            return self._by_default_route()
        try:
            matcher = compile_go(pattern)
        except re.error as error:
            raise ConfigError(flag, pattern, f"a regular expression ({error})") from error
        matches = {link.index: self._matching(link, matcher) for link in self._links.values()}
        for least in range(len(self._families), 0, -1):
            for index, found in matches.items():
                if len(found) >= least:
                    return self._with_addresses(flag, pattern, self._links[index], *found)
        for link in self._links.values():
            if matcher.search(link.name):
                return self._with_addresses(flag, pattern, link)
        raise ConfigError(flag, pattern, f"a match of a name or address among {self.inventory()}")

    def _matching(self, link: Link, matcher: re.Pattern[str]) -> list[Interface]:
        """Return the best address of each family on a link that matches."""
        every = ([a.interface for a in self._usable(link, one)] for one in self._families)
        found = (next((it for it in some if matcher.search(str(it.ip))), None) for some in every)
        return [interface for interface in found if interface]

    def _by_route(self, flag: str, text: str) -> Uplinks:
        """Return the interface and source address of the kernel's route to an address."""
        try:
            target = ip_address(text)
            of = family_of(target)
            if of not in self._families:
                raise ValueError
        except ValueError as error:
            raise ConfigError(flag, text, f"an {self._words} address") from error
        body = RTMSG.pack(of.af, of.bits, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, target.packed)
        [answer] = self._seen.netlink.exchange([Request(RTM_GETROUTE, 0, body)])
        found = attributes(answer.body, RTMSG.size) if not answer.code else {}
        link = self._links.get(_index(found))
        if link is None:
            there = self.inventory()
            raise ConfigError(flag, text, f"an address that the kernel has a route to; there is {there}")
        if _RTA_PREFSRC not in found:
            return self._with_addresses(flag, text, link)
        source = ip_address(found[_RTA_PREFSRC])  # it may stand on another interface
        own = (a.interface for a in self._addresses if a.ifindex == link.index and a.interface.ip == source)
        return self._with_addresses(flag, text, link, next(own, ip_interface(source)))

    def _by_default_route(self) -> Uplinks:
        """Return the interface of the first default route, which is the one of the lowest metric."""
        found: list[Link] = []
        for one in self._families:
            first = next((route for route in self._seen.routes(one) if route.dst[1] == 0), None)
            link = self._links.get(first.oif) if first else None
            if link is None:
                expected = f"one{' through a single interface' if first else ''}"
                there = self.inventory()
                raise ConfigError(
                    f"{one} default route", "none", f"{expected}, or --iface with one of {there}"
                )
            found.append(link)
        if len({link.index for link in found}) > 1:
            names = ", ".join(link.name for link in found)
            raise ConfigError("default routes", names, f"one interface for {self._words}, or --iface")
        return self._with_addresses("default route", found[0].name, found[0])

    def _with_addresses(self, flag: str, value: str, link: Link, *chosen: Interface) -> Uplinks:
        """Return a link with the chosen addresses, and its best one of each family that has none chosen."""
        if not link.mtu:
            raise ConfigError(f"interface {link.name}", link.mtu, "an MTU above 0")
        by_family = {family_of(interface): interface for interface in chosen}
        for one in self._families:
            if one not in by_family:
                usable = self._usable(link, one)
                if not usable:
                    has = f"{link.name} has none{' but link-local' if one is Family.V6 else ''}"
                    expected = f"an interface with an {one} address; {has}, there is {self.inventory()}"
                    raise ConfigError(flag, value, expected)
                published = self._public_ips.get(one) if one is Family.V6 else None  # as flannel has it
                same = (address for address in usable if address.interface.ip == published)
                by_family[one] = next(same, usable[0]).interface
        return tuple(uplink(link, by_family[one]) for one in self._families)

    def _usable(self, link: Link, of: Family) -> list[Address]:
        """Return the link's addresses that a node may have, the best first.

        An address of IPv6 that is good on its link alone would be told to nodes that do not know the link.
        """
        found = [
            address
            for address in self._addresses
            if address.ifindex == link.index
            and family_of(address.interface) is of
            and not address.flags & (_IFA_F_DEPRECATED | _IFA_F_DADFAILED)
            and not (address.interface.ip.is_loopback or address.interface.ip.is_multicast)
            and not (of is Family.V6 and address.interface.ip.is_link_local)
        ]
        return sorted(found, key=_preference)

    def _in_order(self) -> Iterator[Address]:
        """Yield all addresses, in the order of their interfaces."""
        for index in self._links:
            yield from (address for address in self._addresses if address.ifindex == index)


def _preference(address: Address) -> tuple[bool, bool, bool]:
    """Global before link-local, permanent before dynamic, primary before secondary."""
    return (
        address.interface.ip.is_link_local,
        not address.flags & _IFA_F_PERMANENT,
        bool(address.flags & _IFA_F_TEMPORARY),
    )


def _index(route: dict[int, bytes]) -> int:
    return int(U32.unpack(route.get(RTA_OIF, b"\0\0\0\0"))[0])
