"""Which interface carries the overlay: flannel's rules (pkg/ipmatch/match.go, pkg/ip/iface.go, main.go)."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from ipaddress import AddressValueError, IPv4Address, IPv4Interface, ip_interface

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Family, Interface
from flannel_ebpf.base.model import Uplink
from flannel_ebpf.base.regex import compile_go
from flannel_ebpf.kernel.netlink.links import Address, Link, uplink
from flannel_ebpf.kernel.netlink.route_socket import U32, Request, attribute, attributes
from flannel_ebpf.kernel.netlink.routes import RTA_DST, RTA_OIF, RTM_GETROUTE, RTMSG
from flannel_ebpf.kernel.seen import Seen

log = logging.getLogger(__name__)

_AF_INET, _RTA_PREFSRC = 2, 7
_LOOPBACK = 1  # its ifindex, in every namespace
_IFA_F_TEMPORARY, _IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x01, 0x20, 0x80

_Attempt = tuple[str, str, Callable[[], Uplink]]
"""A flag, its value, and what finds the uplink that it names or raises ConfigError."""


def find_uplink(
    seen: Seen,
    iface: Sequence[str] = (),
    iface_regex: Sequence[str] = (),
    can_reach: str = "",
    public_ip: IPv4Address | None = None,
) -> Uplink:
    """Return the interface and the address on it that the flags choose.

    Tried in order: each `iface` (an address, else a name), each `iface_regex` (addresses, then names),
    `can_reach`; "" among the first two stands for the default route's interface. With none of them: the owner
    of `public_ip` if given, else the default route's interface. Raises ConfigError, whose text has the reason
    against each one that was tried.
    """
    refused: list[ConfigError] = []
    host = _Host(seen)
    for flag, value, find in host.attempts(iface, iface_regex, can_reach, public_ip):
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
    """The interfaces of this namespace as they were seen."""

    def __init__(self, seen: Seen) -> None:
        self._seen = seen
        self._links = seen.links
        self._addresses = seen.addresses(Family.V4)

    def inventory(self) -> str:
        """Say what there is, for an error message."""
        names = {link.index: link.name for link in self._links.values()}
        there = [f"{names.get(a.ifindex, '?')} {a.interface}" for a in self._addresses]
        return ", ".join(there) or "no interface has an IPv4 address"

    def attempts(
        self, iface: Sequence[str], iface_regex: Sequence[str], can_reach: str, public_ip: IPv4Address | None
    ) -> Iterator[_Attempt]:
        """Yield what is to be tried, in order."""
        for text in iface:
            yield "--iface", text, partial(self._by_text, "--iface", text)
        for pattern in iface_regex:
            yield "--iface-regex", pattern, partial(self._by_regex, "--iface-regex", pattern)
        if can_reach:
            yield "--iface-can-reach", can_reach, partial(self._by_route, "--iface-can-reach", can_reach)
        if not (iface or iface_regex or can_reach):
            text = str(public_ip or "")
            flag = "--public-ip" if text else "default route"
            yield flag, text, partial(self._by_text, flag, text)

    def _by_text(self, flag: str, text: str) -> Uplink:
        """Return the interface with this address, and that address; else of this name, with its best one."""
        if not text:
            return self._by_default_route()
        try:
            wanted = IPv4Address(text)
        except AddressValueError:
            found = next((link for link in self._links.values() if link.name == text), None)
            if found is None:
                raise ConfigError(flag, text, f"a name or address among {self.inventory()}") from None
            return self._best(flag, text, found)
        for address in self._in_order():
            if address.interface.ip == wanted:
                return self._uplink(self._links[address.ifindex], address.interface)
        beside = ", or --iface beside it when behind NAT" if flag == "--public-ip" else ""
        raise ConfigError(flag, text, f"an address of this host ({self.inventory()}){beside}")

    def _by_regex(self, flag: str, pattern: str) -> Uplink:
        """Return the first interface with a matching address, else the first with a matching name."""
        if not pattern:
            return self._by_default_route()
        try:
            matcher = compile_go(pattern)
        except re.error as error:
            raise ConfigError(flag, pattern, f"a regular expression ({error})") from error
        for link in self._links.values():
            for address in self._usable(link):
                if matcher.search(str(address.interface.ip)):
                    return self._uplink(link, address.interface)
        for link in self._links.values():
            if matcher.search(link.name):
                return self._best(flag, pattern, link)
        raise ConfigError(flag, pattern, f"a match of a name or address among {self.inventory()}")

    def _by_route(self, flag: str, text: str) -> Uplink:
        """Return the interface and source address of the kernel's route to an address."""
        try:
            target = IPv4Address(text)
        except AddressValueError as error:
            raise ConfigError(flag, text, "an IPv4 address") from error
        body = RTMSG.pack(_AF_INET, 32, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, target.packed)
        [answer] = self._seen.netlink.exchange([Request(RTM_GETROUTE, 0, body)])
        found = attributes(answer.body, RTMSG.size) if not answer.code else {}
        link = self._links.get(_index(found))
        if link is None:
            there = self.inventory()
            raise ConfigError(flag, text, f"an address that the kernel has a route to; there is {there}")
        if _RTA_PREFSRC not in found:
            return self._best(flag, text, link)
        source = IPv4Address(found[_RTA_PREFSRC])  # it may stand on another interface
        own = (a.interface for a in self._addresses if a.ifindex == link.index and a.interface.ip == source)
        return self._uplink(link, next(own, IPv4Interface(source)))

    def _by_default_route(self) -> Uplink:
        """Return the interface of the first default route, which is the one of the lowest metric."""
        first = next((route for route in self._seen.routes(Family.V4) if route.dst[1] == 0), None)
        link = self._links.get(first.oif) if first else None
        if link is not None:
            return self._best("default route", link.name, link)
        expected = "one through a single interface" if first else "one"
        raise ConfigError("default route", "none", f"{expected}, or --iface with one of {self.inventory()}")

    def _best(self, flag: str, value: str, link: Link) -> Uplink:
        usable = self._usable(link)
        if not usable:
            expected = f"an interface with an IPv4 address; {link.name} has none, there is {self.inventory()}"
            raise ConfigError(flag, value, expected)
        return self._uplink(link, usable[0].interface)

    def _usable(self, link: Link) -> list[Address]:
        """Return the link's addresses that a node may have, the best first."""
        found = [
            address
            for address in self._addresses
            if address.ifindex == link.index
            and not address.flags & _IFA_F_DEPRECATED
            and not (address.interface.ip.is_loopback or address.interface.ip.is_multicast)
        ]
        return sorted(found, key=_preference)

    def _in_order(self) -> Iterator[Address]:
        """Yield all addresses, in the order of their interfaces."""
        for index in self._links:
            yield from (address for address in self._addresses if address.ifindex == index)

    def _uplink(self, link: Link, interface: Interface) -> Uplink:
        if not link.mtu:
            raise ConfigError(f"interface {link.name}", link.mtu, "an MTU above 0")
        return uplink(link, interface)


def _preference(address: Address) -> tuple[bool, bool, bool]:
    """Global before link-local, permanent before dynamic, primary before secondary."""
    return (
        address.interface.ip.is_link_local,
        not address.flags & _IFA_F_PERMANENT,
        bool(address.flags & _IFA_F_TEMPORARY),
    )


def _index(route: dict[int, bytes]) -> int:
    return int(U32.unpack(route.get(RTA_OIF, b"\0\0\0\0"))[0])
