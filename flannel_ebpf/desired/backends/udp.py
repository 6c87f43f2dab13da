"""The udp backend (flannel pkg/backend/udp): a TUN device whose relay puts packets into UDP.

The relay has a table of peers; the kernel only needs the way into the TUN. As in flannel it carries IPv4
alone: in a dual-stack network IPv6 is leased, and has no way.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Any

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.family import Address, Family, family_of
from flannel_ebpf.base.model import LeasePart, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends.peer import Peer, Stack, path_to, remote
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
    pool = config.pools[0]
    keys = {"Network": str(pool.network), "SubnetLen": pool.subnet_len}
    keys |= {"SubnetMin": str(pool.subnet_min), "SubnetMax": str(pool.subnet_max)}
    keys |= {"EnableNFTables": True} if config.enable_nftables else {}
    wanted = json.dumps({**keys, "Backend": {"Type": "udp"}})
    return (
        "the udp backend needs no such device; to change the whole network to it, "
        f"run `flannel-ebpf config set '{wanted}'` and restart the daemon on every node"
    )


def overlay_name(config: NetworkConfig, family: Family) -> str:
    """Return the TUN device's name; there is none for IPv6."""
    return TUN_NAME if family is Family.V4 else ""


def mtu(config: NetworkConfig, uplink: Uplink) -> int:
    """Return the uplink's MTU less the outer headers."""
    return uplink.mtu - OVERHEAD


def obstacle(config: NetworkConfig, uplink: Uplink) -> str:
    """Say that IPv6 has no way."""
    return "" if family_of(uplink.ip) is Family.V4 else "the udp backend carries IPv4 alone"


def lease_data(config: NetworkConfig, mac: Mac | None) -> tuple[str, Any]:
    """Return no type and no data: flanneld's udp leases carry neither."""
    return "", None


def peers(
    stack: Stack, parts: Sequence[LeasePart], paths: Mapping[Address, PathFacts]
) -> tuple[list[Peer], list[Skipped]]:
    """Return every lease of another node: flannel's udp backend does not look at the type."""
    found = []
    for part in remote(stack, parts):
        path = path_to(stack, part, paths)
        bpf = part.backend_data == BPF_DATA
        mode = Mode.NONE if path.kernel_only else Mode.UDP
        found.append(Peer(part.subnet, part.public_ip, mode, path.mtu, path.on_link, bpf=bpf))
    return found, []


def objects(stack: Stack, peers: Sequence[Peer]) -> list[Object]:
    """Return the TUN as the relay makes it, the route of the whole network into it, and the relay's peers.

    accept_local: the relay's ICMP answers come in on the device from its own address, and the kernel would
    drop them as martians.
    """
    return [
        TunLink(TUN_NAME, mtu(stack.config, stack.uplink)),
        Sysctl(f"net/ipv4/conf/{TUN_NAME}/accept_local", "1"),
        LinkAddress(TUN_NAME, ip_interface((stack.subnet.network_address, 32))),
        Route(stack.network, None, TUN_NAME),
        *(RelayPeer(peer.subnet, peer.public_ip) for peer in peers),
    ]
