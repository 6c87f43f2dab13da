"""Whom the relay sends to and whom it believes: remote subnet -> public address, longest prefix first."""

from __future__ import annotations

import json
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv4Network

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Address, Network, in_order

_REMEMBERED = 65536
"""Answers kept per direction. A scan over more addresses than this costs time, never memory."""


def encode(peers: Mapping[Network, Address]) -> str:
    """Return the text of a peers file: one JSON object, subnet -> public address, sorted."""
    return json.dumps({str(net): str(peers[net]) for net in sorted(peers, key=in_order)}, indent=0)


def decode(text: str, source: str) -> dict[IPv4Network, IPv4Address]:
    """Read what `encode` wrote. Raises ConfigError naming `source` for anything else."""
    try:
        entries = json.loads(text)
        return {IPv4Network(net): IPv4Address(ip) for net, ip in entries.items()}
    except (ValueError, AttributeError) as error:
        raise ConfigError(source, str(error), "a JSON object of subnet: public address") from error


class PeerTable:
    """The routes of one relay process. Answers are remembered until the next `replace`.

    Addresses are integers in host order where packets are looked up; public addresses are dotted text,
    as the socket takes and gives them.
    """

    def __init__(self) -> None:
        self._by_length: list[tuple[int, dict[int, str]]] = []
        self._subnets: dict[str, list[tuple[int, int]]] = {}
        self.next_hops: dict[int, str] = {}
        self.senders: set[tuple[str, int]] = set()

    def __len__(self) -> int:
        return sum(len(subnets) for _, subnets in self._by_length)

    def replace(self, peers: Mapping[IPv4Network, IPv4Address]) -> None:
        """Take `peers` as the whole truth."""
        lengths: dict[int, dict[int, str]] = {}
        subnets: dict[str, list[tuple[int, int]]] = {}
        for net, ip in peers.items():
            mask, address = int(net.netmask), int(net.network_address)
            lengths.setdefault(mask, {})[address] = str(ip)
            subnets.setdefault(str(ip), []).append((mask, address))
        self._by_length = sorted(lengths.items(), reverse=True)
        self._subnets = subnets
        self.next_hops.clear()
        self.senders.clear()

    def next_hop(self, dst: int) -> str | None:
        """Return the public address behind which `dst` lives; remember it in `next_hops`."""
        for mask, subnets in self._by_length:
            public_ip = subnets.get(dst & mask)
            if public_ip is not None:
                if len(self.next_hops) >= _REMEMBERED:
                    self.next_hops.clear()
                self.next_hops[dst] = public_ip
                return public_ip
        return None

    def is_member(self, sender: str) -> bool:
        """Say whether `sender` is the public address of any lease."""
        return sender in self._subnets

    def may_send(self, sender: str, src: int) -> bool:
        """Say whether inner source `src` is in a subnet of `sender`; remember a yes in `senders`."""
        if not any(src & mask == address for mask, address in self._subnets.get(sender, ())):
            return False
        if len(self.senders) >= _REMEMBERED:
            self.senders.clear()
        self.senders.add((sender, src))
        return True
