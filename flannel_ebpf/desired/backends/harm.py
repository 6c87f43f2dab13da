"""Leases that would take something away: this node's own subnet, its way to the others, another's subnet.

flannel follows all of them. One key, written by mistake or by malice, then leads the uplink's network, etcd's
address or another node's pods into the tunnel, and a node that cannot reach etcd never hears of its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_network

from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import LeasePart, Skipped
from flannel_ebpf.desired.backends.peer import Peer, Stack


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What of one family stands around this node, each with a word for people.

    `addresses` no lease may hold: this host's own, gateways, the servers that leases come from. `links` no
    lease may overlap: networks of other interfaces. `not_nodes` are no other node's: this host's own, and
    those of the uplink's network that nobody has.
    """

    addresses: Mapping[Address, str] = field(default_factory=dict)
    links: Mapping[Network, str] = field(default_factory=dict)
    not_nodes: Mapping[Address, str] = field(default_factory=dict)


class Judge:
    """Says of leases of one family what speaks against them.

    In integers: ipaddress's own questions take ten times as long, and there are thousands of leases.
    """

    def __init__(self, stack: Stack, around: Surroundings) -> None:
        self._bits = stack.family.bits
        self._own, self._own_ip = stack.subnet, stack.public_ip
        self._leasable = stack.pool.leasable
        self._around = around
        self._held = [(int(address), address) for address in around.addresses if address in stack.network]
        self._links = [link for link in around.links if link.overlaps(stack.network)]

    def against(self, part: LeasePart) -> str:
        """Return why a lease is not followed, "" when nothing here speaks against it."""
        if part.subnet == self._own:
            return ""
        return self._against_address(part) or self._against_subnet(part.subnet)

    def _against_address(self, part: LeasePart) -> str:
        ip = part.public_ip
        if int(ip) in self._leasable:
            return f"public address {ip} lies in the overlay network itself"
        if ip in self._around.not_nodes and ip != self._own_ip:
            return f"public address {ip} is {self._around.not_nodes[ip]}"
        return ""

    def _against_subnet(self, subnet: Network) -> str:
        host = self._bits - min(subnet.prefixlen, self._own.prefixlen)
        if int(subnet.network_address) >> host == int(self._own.network_address) >> host:
            return f"overlaps {self._own}, this node's own subnet"
        host = self._bits - subnet.prefixlen
        place = int(subnet.network_address) >> host
        for number, address in self._held:
            if number >> host == place:
                return f"holds {address}, {self._around.addresses[address]}"
        for link in self._links:
            if link.overlaps(subnet):
                return f"overlaps {link}, {self._around.links[link]}"
        return ""


def uncontested(stack: Stack, peers: Sequence[Peer]) -> tuple[list[Peer], list[Skipped]]:
    """Part the peers, oldest first, from those that claim what an older one has: subnet, address or VTEP MAC.

    For the kernel has one entry for a MAC; flannel takes the one that it hears of last. Several leases of one
    node may have the same.
    """
    found: list[Peer] = []
    skipped: list[Skipped] = []
    claims = _Claims(stack, peers)
    for peer in peers:
        why = claims.against(peer)
        if why:
            skipped.append(Skipped(str(peer.subnet), why, contest=True))
        else:
            claims.add(peer)
            found.append(peer)
    return found, skipped


class _Claims:
    """What the peers so far have."""

    def __init__(self, stack: Stack, peers: Iterable[Peer]) -> None:
        self._taken = _Taken(stack.family)
        self._stations = {stack.vtep_mac: stack.public_ip}
        self._inside: list[Address] = []
        base, mask = int(stack.network.network_address), int(stack.network.netmask)
        self._may_be_inside = {peer.public_ip for peer in peers if int(peer.public_ip) & mask == base}

    def against(self, peer: Peer) -> str:
        """Return which older claim speaks against one more, "" when none does."""
        older = self._taken.overlapping(peer.subnet)
        if older:
            return f"overlaps {older}, which was there before"
        for address in self._inside:
            if address in peer.subnet:
                return f"holds {address}, another node's address"
        if peer.public_ip in self._may_be_inside:
            older = self._taken.overlapping(ip_network(peer.public_ip))
            if older:
                return f"public address {peer.public_ip} lies in {older}, which was there before"
        station = self._stations.get(peer.vtep_mac, peer.public_ip) if peer.vtep_mac else peer.public_ip
        if station != peer.public_ip:
            return f"VtepMAC {peer.vtep_mac} is that of {station} already"
        return ""

    def add(self, peer: Peer) -> None:
        """Note what one more has."""
        self._taken.add(peer.subnet)
        if peer.vtep_mac:
            self._stations[peer.vtep_mac] = peer.public_ip
        if peer.public_ip in self._may_be_inside:
            self._inside.append(peer.public_ip)


class _Taken:
    """Subnets that do not overlap; nearly all have one length, so a look takes one step for each length."""

    def __init__(self, family: Family) -> None:
        self._bits = family.bits
        self._places: dict[int, dict[int, Network]] = {}
        self._wider: dict[tuple[int, int], dict[int, Network]] = {}

    def add(self, subnet: Network) -> None:
        """Note one more."""
        base, length = int(subnet.network_address), subnet.prefixlen
        self._places.setdefault(length, {})[base >> self._bits - length] = subnet
        for (inner, outer), places in self._wider.items():
            if inner == length:
                places[base >> self._bits - outer] = subnet

    def overlapping(self, subnet: Network) -> Network | None:
        """Return one that overlaps, None when there is none."""
        base, length = int(subnet.network_address), subnet.prefixlen
        for known, places in self._places.items():
            shared = min(known, length)
            found = (places if known == shared else self._seen_from(known, length)).get(
                base >> self._bits - shared
            )
            if found is not None:
                return found
        return None

    def _seen_from(self, inner: int, outer: int) -> dict[int, Network]:
        """Return the subnets of length `inner` by the network of length `outer` in which they are."""
        if (inner, outer) not in self._wider:
            places = self._places[inner].items()
            self._wider[inner, outer] = {place >> inner - outer: subnet for place, subnet in places}
        return self._wider[inner, outer]
