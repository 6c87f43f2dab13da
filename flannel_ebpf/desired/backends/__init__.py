"""How each backend reaches its peers: pure functions from leases to kernel objects.

A backend answers four questions: what MTU do pods get, what does our own lease say, which leases are
peers, and which kernel objects carry packets to them. The kernel path it describes is complete by itself;
`datapath` describes the BPF entries that only make it faster.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Protocol

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.model import Lease, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.desired.backends import hostgw, udp, vxlan
from flannel_ebpf.desired.backends.peer import Node, Peer
from flannel_ebpf.desired.objects import Object

__all__ = ["Backend", "Node", "Paths", "Peer", "backend_of", "part"]

Paths = Mapping[IPv4Address, PathFacts]

_BROADCAST = 0xFFFFFFFF
_LOOPBACK, _MULTICAST = 127, 0xE
"""First octet of 127.0.0.0/8, first four bits of 224.0.0.0/4."""


class Backend(Protocol):
    """The shape shared by the modules `vxlan`, `hostgw` and `udp`."""

    def overlay_name(self, config: NetworkConfig) -> str:
        """Return the name of the overlay device, "" when the backend has none."""

    def mtu(self, config: NetworkConfig, uplink: Uplink) -> int:
        """Return the MTU that pods get (FLANNEL_MTU)."""

    def lease_data(self, config: NetworkConfig, mac: Mac | None) -> tuple[str, Any]:
        """Return BackendType and BackendData of our own lease."""

    def peers(self, node: Node, leases: Sequence[Lease], paths: Paths) -> tuple[list[Peer], list[Skipped]]:
        """Return the leases we can send to, and those we cannot with the reason."""

    def objects(self, node: Node, peers: Sequence[Peer]) -> list[Object]:
        """Return every kernel object of the kernel path."""


_BACKENDS: Mapping[str, Backend] = {"vxlan": vxlan, "host-gw": hostgw, "udp": udp}


def backend_of(config: NetworkConfig) -> Backend:
    """Return the backend that the network config names."""
    return _BACKENDS[config.backend_type]


def part(network: IPv4Network, leases: Sequence[Lease]) -> tuple[list[Lease], list[Skipped]]:
    """Part the leases from those that no backend could follow, with the reason."""
    usable: list[Lease] = []
    skipped: list[Skipped] = []
    # In integers: the questions that ipaddress answers take ten times as long, and there are thousands.
    base, mask, length = int(network.network_address), int(network.netmask), network.prefixlen
    for lease in leases:
        subnet, ip = lease.subnet, int(lease.public_ip)
        if subnet.prefixlen < length or int(subnet.network_address) & mask != base:
            # left from before the network's config was changed
            skipped.append(Skipped(str(subnet), f"outside the network {network}"))
        elif ip in {0, _BROADCAST} or ip >> 24 == _LOOPBACK or ip >> 28 == _MULTICAST:
            skipped.append(Skipped(str(subnet), f"PublicIP {lease.public_ip} is the address of no node"))
        else:
            usable.append(lease)
    return usable, skipped
