"""Values that tests of every floor need: leases, and this node in a network."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.base.model import Claim, Endpoint, Lease, LeasePart, Mac, Uplink
from flannel_ebpf.desired.backends import Stack


def claim(public_ip: Address | str, kind: str = "", data: Any = None) -> Claim:
    """What a node of one family says of itself."""
    return Claim(kind, (Endpoint(ip_address(public_ip), data),))


def lease(
    subnet: Network | str, public_ip: Address | str, kind: str = "", data: Any = None, **rest: Any
) -> Lease:
    """A lease of one family."""
    part = LeasePart(ip_network(subnet), ip_address(public_ip), kind, data)
    return Lease((part,), **rest)


def stack(config: NetworkConfig, uplink: Uplink, subnet: Network | str, mac: Mac | None = None) -> Stack:
    """This node in the first family of a network, with the uplink's own address."""
    return Stack(config, config.pools[0], uplink, uplink.ip, ip_network(subnet), mac)
