"""The udp backend's peers: every lease, and which of them may be sent unfinished packets."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import LeasePart, Mac, PathFacts, Uplink
from flannel_ebpf.contract import abi, enums
from flannel_ebpf.desired.backends import udp
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.kernel.netlink.ethtool import is_hardware
from tests.samples import stack

CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "udp"}}', "test")
UPLINK = Uplink(2, "eth0", IPv4Address("192.0.2.1"), 24, 1500, Mac(bytes(6)))
NODE = stack(CONFIG, UPLINK, "10.1.1.0/24")
OTHER = IPv4Address("192.0.2.2")


def flags_of(**fields: Any) -> enums.PeerFlag:
    """What the programs are told of a peer with such a lease."""
    part = LeasePart(IPv4Network("10.1.2.0/24"), OTHER, **fields)
    found, skipped = udp.peers(NODE, [part], {OTHER: PathFacts(mtu=1500, on_link=True)})
    assert not skipped
    entries = contents.peer_entries(found, {part.subnet: 1})
    return abi.Peer.unpack(entries[0].value).flags


@pytest.mark.parametrize("kind", ["", "vxlan", "host-gw", "wireguard"])
def test_leases_of_every_type_are_peers(kind: str) -> None:
    assert flags_of(backend_type=kind) == enums.PeerFlag.ON_LINK


@pytest.mark.parametrize("data", [None, "bpf", [], {"VNI": 1}, {"Datapath": "kernel"}, {"Datapath": 1}])
def test_only_a_lease_that_says_so_has_programs(data: Any) -> None:
    assert enums.PeerFlag.BPF not in flags_of(backend_data=data)
    assert flags_of(backend_data=udp.BPF_DATA) == enums.PeerFlag.ON_LINK | enums.PeerFlag.BPF


@pytest.mark.parametrize(
    ("driver", "bus", "hardware"),
    [
        (b"igb", b"0000:01:00.0", True),
        (b"mlx5_core", b"10000:e1:00.1", True),
        (b"virtio_net", b"0000:00:03.0", False),
        (b"vmxnet3", b"0000:0b:00.0", False),
        (b"veth", b"", False),
        (b"hv_netvsc", b"", False),
        (b"vif", b"vif-0", False),
        (b"tun", b"tap", False),
        (b"802.1Q VLAN Support", b"", False),
    ],
)
def test_hardware_finishes_packets(driver: bytes, bus: bytes, hardware: bool) -> None:
    assert is_hardware(struct.pack("=I32s32s32s32s68x", 3, driver, b"1", b"", bus)) == hardware
