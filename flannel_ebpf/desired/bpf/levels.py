"""What the programs are told of a proof: which pods are carried whole, and which not at all."""

from __future__ import annotations

from bisect import bisect_right
from ipaddress import IPv4Network

from flannel_ebpf.base.family import Address
from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import PodFlag
from flannel_ebpf.desired.objects import MapEntry
from flannel_ebpf.desired.proof.proof import Level, Proof
from flannel_ebpf.desired.proof.ranges import networks4

MOST = 8192
"""Prefixes in fl_levels; it has room for twice as many, because new ones are put before old ones go."""


class Levels:
    """The flags of IPv4 pods beside those of their ports, as a proof has them; by flow means none.

    A proof of more prefixes than the map holds keeps every address on the kernel's path.
    """

    def __init__(self, proof: Proof) -> None:
        prefixes = {
            PodFlag.STATELESS: networks4(proof.free),
            PodFlag.GUARDED: networks4(proof.of_level(Level.KERNEL)),
        }
        if sum(map(len, prefixes.values())) > MOST:
            prefixes = {PodFlag.GUARDED: [IPv4Network("0.0.0.0/0")]}
        self._ranges = sorted(
            (int(one.network_address), int(one.broadcast_address), flag)
            for flag, networks in prefixes.items()
            for one in networks
        )
        self.entries = [_entry(one, flag) for flag, networks in prefixes.items() for one in networks]
        """All of fl_levels."""

    def of(self, address: Address) -> PodFlag:
        """Return the flags of the pod at an address."""
        at = bisect_right(self._ranges, int(address), key=lambda one: one[0])
        if at and int(address) <= self._ranges[at - 1][1]:
            return self._ranges[at - 1][2]
        return PodFlag(0)


def _entry(network: IPv4Network, flag: PodFlag) -> MapEntry:
    key = abi.SubnetKey(len=network.prefixlen, addr=network.network_address)
    return MapEntry("fl_levels", key.pack(), abi.Level(flag).pack())
