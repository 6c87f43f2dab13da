"""Any packet that one node's BPF sends, the other node's kernel or BPF delivers; and the other way round."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP

from flannel_ebpf.contract import abi
from tests.bpf.frames import from_pod, l4
from tests.bpf.kernel_path import KernelNode
from tests.bpf.node import DIRECT, OWN, PEER, POD_MAC, REDIRECT, UDP, UPLINK_MAC, VXLAN, Node, as_peer

ETH = 14
NodeWith = Callable[[abi.Config], Node]
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def pod_frames(draw: st.DrawFn, src: IPv4Address, dst: IPv4Address) -> bytes:
    """Frames of a pod that every backend may carry."""
    ports = st.integers(1, 65535)
    body = l4(
        draw(st.sampled_from(["udp", "tcp", "tcp:PA", "ping", "pong"])),
        sport=draw(ports),
        dport=draw(ports),
        payload=draw(st.binary(max_size=1400)),
    )
    ip = {
        "tos": draw(st.integers(0, 255)),
        "ttl": draw(st.integers(5, 255)),
        "id": draw(st.integers(0, 65535)),
        "flags": draw(st.sampled_from(["", "DF"])),
    }
    return bytes(from_pod(body, src=src, dst=dst, **ip))


def to_uplink(frame: bytes) -> bytes:
    """Give a frame the MAC that the next hop's neighbour entry would give it."""
    return UPLINK_MAC.octets + frame[6:]


def hops_away(frame: bytes, delivered: bytes) -> int:
    """Return by how much the TTL fell; everything else of the IPv4 packet must be the same."""
    sent, got = IP(frame[ETH:]), IP(delivered[ETH:])
    hops = int(sent.ttl - got.ttl)
    sent.ttl = got.ttl
    del sent.chksum
    assert bytes(sent).hex() == delivered[ETH:].hex()
    assert delivered[:6] == POD_MAC.octets
    return hops


@shared
@given(frame=pod_frames(PEER.pod, OWN.pod))
@pytest.mark.parametrize(("config", "hops"), [(VXLAN, 2), (DIRECT, 2), (UDP, 4)])
def test_bpf_to_bpf(frame: bytes, config: abi.Config, hops: int, node_with: NodeWith) -> None:
    sent = node_with(as_peer(config)).run("fl_from_pod", frame)
    got = node_with(config).run("fl_from_peer", to_uplink(sent.frame))
    assert (sent.verdict, got.verdict) == (REDIRECT, REDIRECT)
    assert hops_away(frame, got.frame) == hops


@shared
@given(frame=pod_frames(PEER.pod, OWN.pod))
def test_bpf_to_kernel(frame: bytes, node_with: NodeWith, kernel_node: KernelNode) -> None:
    sent = node_with(as_peer(VXLAN)).run("fl_from_pod", frame)
    assert sent.verdict == REDIRECT
    assert hops_away(frame, kernel_node.delivered(to_uplink(sent.frame))) == 2


@shared
@given(frame=pod_frames(OWN.pod, PEER.pod))
def test_kernel_to_bpf(frame: bytes, node_with: NodeWith, kernel_node: KernelNode) -> None:
    sent = kernel_node.encapsulated(frame)
    got = node_with(as_peer(VXLAN)).run("fl_from_peer", to_uplink(sent))
    assert got.verdict == REDIRECT
    assert hops_away(frame, got.frame) == 2


def test_traffic_is_counted_by_peer(node_with: NodeWith) -> None:
    node, other = node_with(VXLAN), node_with(as_peer(VXLAN))
    before, far_before = node.traffic(PEER), other.traffic(OWN)
    sent = node.run("fl_from_pod", bytes(from_pod(l4(payload=bytes(100)))))
    other.run("fl_from_peer", to_uplink(sent.frame))
    assert node.traffic(PEER) == replace(
        before, tx_packets=before.tx_packets + 1, tx_bytes=before.tx_bytes + 128
    )
    assert other.traffic(OWN) == replace(
        far_before, rx_packets=far_before.rx_packets + 1, rx_bytes=far_before.rx_bytes + 128
    )
