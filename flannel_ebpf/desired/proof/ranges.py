"""Sets of whole numbers as sorted ranges: addresses, ports, protocols, device names, conntrack states.

A set is a tuple of (first, last) pairs, both inside, in order, with a gap between any two. Everything that
a rule can say of a packet's field is such a set, device names too: see `name_number`.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Network, summarize_address_range

Ranges = tuple[tuple[int, int], ...]

NOTHING: Ranges = ()

NAME_LEN = 16
"""IFNAMSIZ: octets of a device name, with a zero octet at the end."""


def exactly(*numbers: int) -> Ranges:
    """Return the set of these numbers."""
    return of((number, number) for number in numbers)


def up_to(bits: int) -> Ranges:
    """Return every number of so many bits."""
    return ((0, (1 << bits) - 1),)


def of(pairs: Iterable[tuple[int, int]]) -> Ranges:
    """Return the union of ranges in any order; one that ends before it begins is empty."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(pairs):
        if first > last:
            continue
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(last, found[-1][1]))
        else:
            found.append((first, last))
    return tuple(found)


def both(one: Ranges, other: Ranges) -> Ranges:
    """Return what is in both sets."""
    if not one or not other or one[-1][1] < other[0][0] or other[-1][1] < one[0][0]:
        return NOTHING
    if len(other) == 1 and other[0][0] <= one[0][0] and one[-1][1] <= other[0][1]:
        return one
    if len(one) == 1 and one[0][0] <= other[0][0] and other[-1][1] <= one[0][1]:
        return other
    found = []
    at, in_other = 0, 0
    while at < len(one) and in_other < len(other):
        first, last = one[at]
        other_first, other_last = other[in_other]
        low, high = max(first, other_first), min(last, other_last)
        if low <= high:
            found.append((low, high))
        if last < other_last:
            at += 1
        else:
            in_other += 1
    return tuple(found)


def either(one: Ranges, other: Ranges) -> Ranges:
    """Return what is in at least one of the sets."""
    if not one or one == other:
        return other
    return of((*one, *other)) if other else one


def without(one: Ranges, other: Ranges) -> Ranges:
    """Return what is in the first set only."""
    found = []
    in_other = 0
    for begin, last in one:
        first = begin
        while in_other < len(other) and other[in_other][1] < first:
            in_other += 1
        at = in_other
        while at < len(other) and other[at][0] <= last:
            if first < other[at][0]:
                found.append((first, other[at][0] - 1))
            first = other[at][1] + 1
            at += 1
        if first <= last:
            found.append((first, last))
    return tuple(found)


def size(ranges: Ranges) -> int:
    """Return how many numbers a set has."""
    return sum(last - first + 1 for first, last in ranges)


def points(ranges: Ranges, most: int) -> list[int] | None:
    """Return every number of a set, None when there are more than `most`."""
    if size(ranges) > most:
        return None
    return [number for first, last in ranges for number in range(first, last + 1)]


def of_network(network: IPv4Network | IPv6Network) -> Ranges:
    """Return a network's addresses."""
    return ((int(network.network_address), int(network.broadcast_address)),)


def networks4(ranges: Ranges) -> list[IPv4Network]:
    """Return IPv4 addresses as the fewest networks."""
    return [
        network
        for first, last in ranges
        for network in summarize_address_range(IPv4Address(first), IPv4Address(last))
    ]


def name_number(name: str) -> int:
    """Return a device name as a number: its octets, then zeros, as the kernel compares them."""
    return int.from_bytes(name.encode()[:NAME_LEN].ljust(NAME_LEN, b"\0"))


def names(found: Iterable[str]) -> Ranges:
    """Return the set of these device names; "" is what a rule sees where a packet has no such device."""
    return exactly(*map(name_number, found))


def names_from(start: bytes) -> Ranges:
    """Return every device name that begins with these octets (`cali*` in nft, `cali+` in iptables)."""
    return ((int.from_bytes(start.ljust(NAME_LEN, b"\0")), int.from_bytes(start.ljust(NAME_LEN, b"\xff"))),)
