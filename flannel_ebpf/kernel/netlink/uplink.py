"""Which interface carries the overlay: flannel's rules (pkg/ipmatch/match.go, pkg/ip/iface.go)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import AddressValueError, IPv4Address

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.model import Uplink
from flannel_ebpf.kernel.netlink.bulk import RTA_DST, RTA_OIF, RTM_GETROUTE, RTMSG, U32, read_main_table
from flannel_ebpf.kernel.netlink.links import Address, Link, read_addresses, read_links, uplink
from flannel_ebpf.kernel.netlink.route_socket import Request, RouteSocket, attribute, attributes

_RTA_PREFSRC = 7
_SCOPE_UNIVERSE, _SCOPE_LINK = 0, 253
_IFA_F_TEMPORARY, _IFA_F_DEPRECATED, _IFA_F_PERMANENT = 0x01, 0x20, 0x80


def find_uplink(
    iface: Sequence[str] = (),
    iface_regex: Sequence[str] = (),
    can_reach: str = "",
    public_ip: IPv4Address | None = None,
) -> Uplink:
    """Return the interface and the address on it that the flags choose.

    Tried in order: each `iface` (name or address), each `iface_regex` (all addresses, then all names),
    `can_reach`. With none of them: the owner of `public_ip` if given, else the default route's interface.
    Raises ConfigError that names the flag, what was given and what there is.
    """
    with RouteSocket() as netlink:
        choice = _Choice(netlink)
        for wanted in iface:
            found = choice.by_address(wanted) or choice.by_name(wanted)
            if found:
                return found
        for pattern in iface_regex:
            found = choice.by_regex(pattern)
            if found:
                return found
        if can_reach:
            return choice.by_route("--iface-can-reach", can_reach)
        if iface or iface_regex:
            flag, value = ("--iface", iface) if iface else ("--iface-regex", iface_regex)
            raise ConfigError(flag, ",".join(value), f"a name or address among {choice.inventory()}")
        if public_ip is not None:
            found = choice.by_address(str(public_ip))
            if not found:
                expected = (
                    f"an address of this host ({choice.inventory()}), or --iface beside it when behind NAT"
                )
                raise ConfigError("--public-ip", str(public_ip), expected)
            return found
        return choice.by_default_route()


class _Choice:
    """The interfaces of this namespace as they are now."""

    def __init__(self, netlink: RouteSocket) -> None:
        self._netlink = netlink
        self._links = read_links(netlink)
        self._addresses = read_addresses(netlink)

    def inventory(self) -> str:
        """Say what there is, for an error message."""
        names = {link.index: link.name for link in self._links.values()}
        there = [f"{names.get(a.ifindex, '?')} {a.interface}" for a in self._addresses]
        return ", ".join(there) or "no interface has an IPv4 address"

    def by_address(self, text: str) -> Uplink | None:
        """Return the interface that owns this address, with this address."""
        for address in self._addresses:
            if str(address.interface.ip) == text:
                return self._uplink(address)
        return None

    def by_name(self, name: str) -> Uplink | None:
        """Return the interface of this name, with its best address."""
        for link in self._links.values():
            if link.name == name:
                return self._best("--iface", link)
        return None

    def by_regex(self, pattern: str) -> Uplink | None:
        """Return the first interface with a matching address, else the first with a matching name."""
        try:
            matcher = re.compile(pattern)
        except re.error as error:
            raise ConfigError("--iface-regex", pattern, f"a regular expression ({error})") from error
        for address in self._addresses:
            if matcher.search(str(address.interface.ip)):
                return self._uplink(address)
        for link in self._links.values():
            if matcher.search(link.name) and any(a.ifindex == link.index for a in self._addresses):
                return self._best("--iface-regex", link)
        return None

    def by_route(self, flag: str, text: str) -> Uplink:
        """Return the interface and source address of the kernel's route to an address."""
        try:
            target = IPv4Address(text)
        except AddressValueError as error:
            raise ConfigError(flag, text, "an IPv4 address") from error
        body = RTMSG.pack(2, 32, 0, 0, 0, 0, 0, 0, 0) + attribute(RTA_DST, target.packed)
        [answer] = self._netlink.exchange([Request(RTM_GETROUTE, 0, body)])
        found = attributes(answer.body, RTMSG.size) if not answer.code else {}
        index = U32.unpack(found.get(RTA_OIF, b"\0\0\0\0"))[0]
        source = IPv4Address(found.get(_RTA_PREFSRC, b"\0\0\0\0"))
        for address in self._addresses:
            if address.ifindex == index and address.interface.ip == source:
                return self._uplink(address)
        raise ConfigError(
            flag, text, f"an address that the kernel has a route to; there is {self.inventory()}"
        )

    def by_default_route(self) -> Uplink:
        """Return the interface of the best default route."""
        routes = [r for r in read_main_table(self._netlink) if r.dst == (0, 0) and r.oif in self._links]
        if not routes:
            raise ConfigError("default route", "none", f"one, or --iface with one of {self.inventory()}")
        best = min(routes, key=lambda route: route.priority)
        return self._best("default route", self._links[best.oif])

    def _best(self, source: str, link: Link) -> Uplink:
        usable = [a for a in self._addresses if a.ifindex == link.index and not a.flags & _IFA_F_DEPRECATED]
        usable = [a for a in usable if a.scope in (_SCOPE_UNIVERSE, _SCOPE_LINK)]
        if not usable:
            raise ConfigError(
                source, link.name, f"an interface with an IPv4 address; there is {self.inventory()}"
            )
        return self._uplink(min(usable, key=_preference))

    def _uplink(self, address: Address) -> Uplink:
        link = self._links[address.ifindex]
        if not link.mtu:
            raise ConfigError(f"interface {link.name}", link.mtu, "an MTU above 0")
        return uplink(link, address)


def _preference(address: Address) -> tuple[bool, bool, bool]:
    """Global before link-local, permanent before dynamic, primary before secondary."""
    return (
        address.interface.ip.is_link_local,
        not address.flags & _IFA_F_PERMANENT,
        bool(address.flags & _IFA_F_TEMPORARY),
    )
