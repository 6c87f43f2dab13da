"""The udp backend (flannel pkg/backend/udp): a TUN device whose relay puts packets into UDP.

The relay has a table of peers; the kernel only needs the way into the TUN.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.model import Lease, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.contract.abi import Mode
from flannel_ebpf.desired.backends.peer import Node, Peer, path_to, remote
from flannel_ebpf.desired.objects import LinkAddress, Object, RelayPeer, Route, Sysctl, TunLink

OVERHEAD = 28
"""Outer IPv4 20 and UDP 8 octets; the payload is the bare inner packet."""

TUN_NAME = "flannel0"

BPF_DATA = {"Datapath": "bpf"}
"""BackendData of a node whose programs are attached. flanneld's udp backend never looks at that field.

Other nodes' programs may then send what no relay could use: packets whose checksum or cutting is still to be
done, as pods hand them over, and as they stay across a virtual link.
"""


def advice(config: NetworkConfig) -> str:
    """Return what to do where the kernel has no vxlan: a whole network's backend is changed by hand alone."""
    keys = {"Network": str(config.network), "SubnetLen": config.subnet_len}
    keys |= {"SubnetMin": str(config.subnet_min), "SubnetMax": str(config.subnet_max)}
    keys |= {"EnableNFTables": True} if config.enable_nftables else {}
    wanted = json.dumps({**keys, "Backend": {"Type": "udp"}})
    return (
        "the udp backend needs no such device; to change the whole network to it, "
        f"run `flannel-ebpf config set '{wanted}'` and restart the daemon on every node"
    )


def overlay_name(config: NetworkConfig) -> str:
    """Return the TUN device's name."""
    return TUN_NAME


def mtu(config: NetworkConfig, uplink: Uplink) -> int:
    """Return the uplink's MTU less the outer headers."""
    return uplink.mtu - OVERHEAD


def lease_data(config: NetworkConfig, mac: Mac | None) -> tuple[str, Any]:
    """Return no type and no data: flanneld's udp leases carry neither."""
    return "", None


def peers(
    node: Node, leases: Sequence[Lease], paths: Mapping[IPv4Address, PathFacts]
) -> tuple[list[Peer], list[Skipped]]:
    """Return every lease of another node: flannel's udp backend does not look at the type."""
    found = []
    for lease in remote(node, leases):
        path = path_to(node, lease, paths)
        bpf = lease.backend_data == BPF_DATA
        mode = Mode.NONE if path.ipsec else Mode.UDP
        found.append(Peer(lease.subnet, lease.public_ip, mode, path.mtu, path.on_link, bpf=bpf))
    return found, []


def objects(node: Node, peers: Sequence[Peer]) -> list[Object]:
    """Return the TUN as the relay makes it, the route of the whole network into it, and the relay's peers.

    accept_local: the relay's ICMP answers come in on the device from its own address, and the kernel would
    drop them as martians.
    """
    return [
        TunLink(TUN_NAME, mtu(node.config, node.uplink)),
        Sysctl(f"net/ipv4/conf/{TUN_NAME}/accept_local", "1"),
        LinkAddress(TUN_NAME, IPv4Interface((node.subnet.network_address, 32))),
        Route(node.config.network, None, TUN_NAME),
        *(RelayPeer(peer.subnet, peer.public_ip) for peer in peers),
    ]
