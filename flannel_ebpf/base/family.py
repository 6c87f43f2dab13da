"""The two address families, so that what is one idea for both is written once."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_network,
)

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface


class Family(IntEnum):
    """An address family; its value is the IP version."""

    V4 = 4
    V6 = 6

    def __str__(self) -> str:
        return f"IPv{self.value}"

    @property
    def bits(self) -> int:
        """How long an address is."""
        return 32 if self is Family.V4 else 128

    @property
    def af(self) -> int:
        """The kernel's number of the family: AF_INET or AF_INET6 (linux/socket.h)."""
        return 2 if self is Family.V4 else 10

    @property
    def unspecified(self) -> Address:
        """The address of nobody: 0.0.0.0 or ::."""
        return self.address(0)

    def address(self, value: int | bytes | str) -> Address:
        """Return an address of this family; raises ValueError."""
        return IPv4Address(value) if self is Family.V4 else IPv6Address(value)

    def network(self, address: int | bytes | str, length: int, *, strict: bool = True) -> Network:
        """Return a network of this family; raises ValueError, with `strict` also for host bits set."""
        if self is Family.V4:
            return IPv4Network((address, length), strict)
        return IPv6Network((address, length), strict)


_OF_VERSION = {family.value: family for family in Family}

NO_NODES: Mapping[Family, tuple[Network, ...]] = {
    Family.V4: tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/4", "255.255.255.255/32"))),
    Family.V6: tuple(map(ip_network, ("::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8"))),
}
"""Addresses that no node or pod can have: unspecified, loopback, multicast, broadcast, mapped IPv4 and
link-local IPv6. The reserved 240.0.0.0/4 works on Linux and is used."""


def family_of(what: Address | Network | Interface) -> Family:
    """Return the family of an address or a network."""
    return _OF_VERSION[what.version]


def ipv4(address: Address) -> IPv4Address:
    """Return an address that can be of no other family; raises TypeError when it is."""
    if not isinstance(address, IPv4Address):
        raise TypeError(f"{address} is no IPv4 address")
    return address


def ipv6(address: Address) -> IPv6Address:
    """Return an address that can be of no other family; raises TypeError when it is."""
    if not isinstance(address, IPv6Address):
        raise TypeError(f"{address} is no IPv6 address")
    return address


def in_order(subnet: Network) -> tuple[int, int, int]:
    """Return what sorts as `subnet` does, IPv4 before IPv6.

    To compare the subnets themselves takes ten times as long, and is an error between families.
    """
    return subnet.version, int(subnet.network_address), subnet.prefixlen
