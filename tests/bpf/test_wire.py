"""On the wire nobody can tell BPF from the kernel: same packets in, and the results must be equal."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from scapy.packet import Packet

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Reason
from tests.bpf.frames import from_pod, l4, packet, vxlan
from tests.bpf.kernel_path import KernelNode
from tests.bpf.node import PEER, POD, REDIRECT, VXLAN, Node

ETH, OUTER_IP, OUTER_UDP, INNER_IP = 14, slice(14, 34), slice(34, 42), 64
NodeWith = Callable[[abi.Config], Node]


def checksum_holds(header: bytes) -> bool:
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def comparable(frame: bytes) -> bytes:
    """Return everything after the outer Ethernet header but IP id, IP checksum and UDP checksum."""
    masked = bytearray(frame[ETH:])
    masked[4:6] = masked[10:12] = masked[26:28] = bytes(2)
    return bytes(masked)


def assert_same_encapsulation(node: Node, kernel: KernelNode, frame: Packet) -> None:
    ran = node.run("fl_from_pod", bytes(frame))
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert checksum_holds(ran.frame[OUTER_IP])
    assert checksum_holds(ran.frame[INNER_IP : INNER_IP + 20])
    assert ran.frame[40:42] == b"\0\0", "the outer UDP checksum must say that there is none"
    assert comparable(ran.frame).hex() == comparable(kernel.encapsulated(bytes(frame))).hex()


@pytest.mark.parametrize("tos", range(256))
def test_every_tos_leaves_alike(tos: int, node_with: NodeWith, kernel_node: KernelNode) -> None:
    assert_same_encapsulation(node_with(VXLAN), kernel_node, from_pod(tos=tos))


@pytest.mark.parametrize("ttl", [2, 3, 63, 64, 128, 254, 255])
@pytest.mark.parametrize("flags", ["", "DF"])
def test_ttl_and_df_leave_alike(ttl: int, flags: str, node_with: NodeWith, kernel_node: KernelNode) -> None:
    assert_same_encapsulation(node_with(VXLAN), kernel_node, from_pod(ttl=ttl, flags=flags, id=ttl))


@pytest.mark.parametrize("size", [0, 1, 2, 17, 18, 63, 64, 512, 1399, 1421, 1422])
@pytest.mark.parametrize("kind", ["udp", "tcp", "ping"])
def test_sizes_leave_alike(size: int, kind: str, node_with: NodeWith, kernel_node: KernelNode) -> None:
    size = min(size, 1410) if kind == "tcp" else size
    frame = from_pod(l4(kind, payload=bytes(byte & 0xFF for byte in range(size))))
    assert_same_encapsulation(node_with(VXLAN), kernel_node, frame)


def test_source_ports_follow_the_kernels_hash(node_with: NodeWith, kernel_node: KernelNode) -> None:
    node, choose = node_with(VXLAN), random.Random(8472)
    for _ in range(200):
        ports = {"sport": choose.randrange(1, 65536), "dport": choose.randrange(1, 65536)}
        frame = from_pod(l4(choose.choice(["udp", "tcp", "ping"]), **ports))
        assert_same_encapsulation(node, kernel_node, frame)


@pytest.mark.parametrize("inner", range(4))
@pytest.mark.parametrize("outer", range(4))
@pytest.mark.parametrize("dscp", [0, 46])
def test_every_ecn_pair_arrives_alike(
    inner: int, outer: int, dscp: int, node_with: NodeWith, kernel_node: KernelNode
) -> None:
    frame = bytes(vxlan(packet(PEER.pod, POD, tos=dscp << 2 | inner), tos=outer))
    ran = node_with(VXLAN).run("fl_from_peer", frame)
    if ran.reason == Reason.ECN:
        assert ran.frame == frame
        return
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert ran.frame == kernel_node.delivered(frame)


def test_ecn_pairs_left_to_the_kernel(node_with: NodeWith) -> None:
    node = node_with(VXLAN)
    left = {
        (inner, outer)
        for inner in range(4)
        for outer in range(4)
        if node.run("fl_from_peer", bytes(vxlan(packet(PEER.pod, POD, tos=inner), tos=outer))).reason
        == Reason.ECN
    }
    not_ect, ect1, ect0, ce = range(4)
    assert left == {(not_ect, ect1), (not_ect, ect0), (not_ect, ce), (ect0, ect1)}


@pytest.mark.parametrize("kind", ["udp", "tcp", "ping", "pong"])
@pytest.mark.parametrize("size", [0, 1, 18, 64, 1000, 1410])
def test_packets_arrive_alike(kind: str, size: int, node_with: NodeWith, kernel_node: KernelNode) -> None:
    frame = bytes(vxlan(packet(PEER.pod, POD, l4(kind, payload=bytes(size)), ttl=9)))
    ran = node_with(VXLAN).run("fl_from_peer", frame)
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert ran.frame == kernel_node.delivered(frame)
