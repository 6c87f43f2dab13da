"""Which changes of routes a node must look at: others change routes all day long, and few of them matter."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import NamedTuple

from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.kernel.netlink.routes import RT_TABLE_MAIN


class _Known(NamedTuple):
    """What matters: destinations inside `networks`, and those that hold one of `peers` (both by version)."""

    tables: frozenset[int]
    networks: dict[int, list[tuple[int, int]]]
    peers: dict[int, list[int]]


class Interest:
    """Told by each pass, asked by the monitor's thread; before the first pass every change matters."""

    def __init__(self) -> None:
        self._known: _Known | None = None
        self.networks: tuple[Network, ...] = ()
        """The networks as last told; none before."""

    def tell(self, networks: Iterable[Network], peers: Iterable[Address], tables: Iterable[int]) -> None:
        """Replace what matters: routes inside `networks`, to `peers`, in the main table and in `tables`."""
        inside: dict[int, list[tuple[int, int]]] = {}
        self.networks = tuple(networks)
        for network in self.networks:
            place = int(network.network_address), network.prefixlen
            inside.setdefault(network.version, []).append(place)
        single: dict[int, list[int]] = {}
        for peer in peers:
            single.setdefault(peer.version, []).append(int(peer))
        found = {version: sorted(numbers) for version, numbers in single.items()}
        self._known = _Known(frozenset({RT_TABLE_MAIN, *tables}), inside, found)

    def matters(self, version: int, table: int, address: int, length: int) -> bool:
        """Say whether a change of the route to address/length in a table does."""
        known = self._known
        if known is None:
            return table == RT_TABLE_MAIN
        if table not in known.tables:
            return False
        width = 128 if version == 6 else 32
        for base, bits in known.networks.get(version, ()):
            if length >= bits and address >> (width - bits) == base >> (width - bits):
                return True
        peers = known.peers.get(version, [])
        first = bisect_left(peers, address)
        return first < len(peers) and peers[first] < address + (1 << (width - length))
