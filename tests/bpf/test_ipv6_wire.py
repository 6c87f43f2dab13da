"""What programs of IPv6 put on the wire and take from it, against the kernel's own device."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.packet import Packet

from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.enums import Reason
from tests import namespaces
from tests.bpf.cases import tampered
from tests.bpf.ipv6 import (
    DIRECT,
    OWN,
    PEER,
    POD,
    VXLAN,
    KernelNode6,
    Node6,
    from_pod,
    l4,
    packet,
    tunnel,
    wrong_checksums,
)
from tests.bpf.node import (
    REDIRECT,
)
from tests.bpf.test_round_trip import shared, to_uplink

Load = Callable[[abi.Config], Node6]


@pytest.fixture(scope="session")
def kernel6() -> Iterator[KernelNode6]:
    """Return the kernel's own vxlan path, in a namespace of its own."""
    made = namespaces.new_namespace()
    with namespaces.inside(made):
        node = KernelNode6()
    yield node
    node.close()
    with namespaces.inside(made):
        assert wrong_checksums() == 0, "the kernel's own device takes every packet that BPF sent"
    os.close(made)


def assert_same_encapsulation(node: Node6, kernel: KernelNode6, frame: Packet) -> None:
    ran = node.run("fl_from_pod", bytes(frame))
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert ran.frame[14:].hex() == kernel.encapsulated(bytes(frame))[14:].hex(), "the checksum too"


@pytest.mark.parametrize("tc", range(0, 256, 5))
def test_every_traffic_class_leaves_alike(tc: int, node6: Load, kernel6: KernelNode6) -> None:
    for ecn in range(4):
        frame = from_pod(tc=tc & ~3 | ecn, fl=0x12345)
        assert_same_encapsulation(node6(VXLAN), kernel6, frame)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 18, 63, 64, 511, 512, 1369, 1370, 1382])
@pytest.mark.parametrize("kind", ["udp", "tcp", "ping"])
def test_sizes_leave_alike_with_their_checksums(
    size: int, kind: str, node6: Load, kernel6: KernelNode6
) -> None:
    size = min(size, 1370) if kind == "tcp" else size
    frame = from_pod(l4(kind, payload=bytes(byte * 7 & 0xFF for byte in range(size))))
    assert_same_encapsulation(node6(VXLAN), kernel6, frame)


def test_ports_labels_and_hop_limits_leave_alike(node6: Load, kernel6: KernelNode6) -> None:
    node, choose = node6(VXLAN), random.Random(8472)
    for _ in range(200):
        ports = {"sport": choose.randrange(1, 65536), "dport": choose.randrange(1, 65536)}
        ip = {"hlim": choose.randrange(2, 256), "fl": choose.randrange(1 << 20)}
        body = l4(
            choose.choice(["udp", "tcp", "ping"]), payload=choose.randbytes(choose.randrange(99)), **ports
        )
        assert_same_encapsulation(node, kernel6, from_pod(body, **ip))


def test_a_checksum_left_to_the_device_makes_no_difference(node6: Load) -> None:
    """The outer one is right already for the packet as its device will finish it."""
    node, frame = node6(VXLAN), bytes(from_pod())
    sent = node.run("fl_from_pod", frame).frame
    unfinished = tampered(from_pod(), 60, b"\x12\x34")
    assert node.run("fl_from_pod", unfinished).frame[60:62] == sent[60:62]


@pytest.mark.parametrize("inner", range(4))
@pytest.mark.parametrize("outer", range(4))
def test_every_ecn_pair_arrives_alike(inner: int, outer: int, node6: Load, kernel6: KernelNode6) -> None:
    frame = bytes(tunnel(packet(PEER.pod, POD, tc=46 << 2 | inner, fl=0xABCDE), tc=outer))
    ran = node6(VXLAN).run("fl_from_peer", frame)
    if ran.reason == Reason.ECN:
        assert ran.frame == frame
        return
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert ran.frame == kernel6.delivered(frame)


@st.composite
def pod_frames(draw: st.DrawFn, src: IPv6Address, dst: IPv6Address) -> bytes:
    """Frames of a pod that every backend may carry."""
    ports = st.integers(1, 65535)
    body = l4(
        draw(st.sampled_from(["udp", "tcp", "tcp:PA", "ping", "pong"])),
        sport=draw(ports),
        dport=draw(ports),
        payload=draw(st.binary(max_size=1360)),
    )
    ip = {
        "tc": draw(st.integers(0, 255)),
        "hlim": draw(st.integers(5, 255)),
        "fl": draw(st.integers(0, 2**20 - 1)),
    }
    return bytes(from_pod(body, src=src, dst=dst, **ip))


def hops_away(frame: bytes, delivered: bytes) -> int:
    """Return by how much the hop limit fell; everything else of the IPv6 packet must be the same."""
    assert delivered[14:21] + delivered[22:] == frame[14:21] + frame[22:]
    return frame[21] - delivered[21]


def as_peer(config: abi.Config) -> abi.Config:
    vtep = PEER.vtep if config.backend == enums.Mode.VXLAN else abi.NO_MAC
    return replace(config, public_ip=PEER.public_ip, subnet=PEER.subnet.network_address, vtep_mac=vtep)


@shared
@given(frame=pod_frames(PEER.pod, OWN.pod))
@pytest.mark.parametrize("config", [VXLAN, DIRECT])
def test_bpf_to_bpf(frame: bytes, config: abi.Config, node6: Load) -> None:
    sent = node6(as_peer(config)).run("fl_from_pod", frame)
    got = node6(config).run("fl_from_peer", to_uplink(sent.frame))
    assert (sent.verdict, got.verdict) == (REDIRECT, REDIRECT)
    assert hops_away(frame, got.frame) == 2


@shared
@given(frame=pod_frames(PEER.pod, OWN.pod))
def test_bpf_to_kernel(frame: bytes, node6: Load, kernel6: KernelNode6) -> None:
    sent = node6(as_peer(VXLAN)).run("fl_from_pod", frame)
    assert sent.verdict == REDIRECT
    assert hops_away(frame, kernel6.delivered(to_uplink(sent.frame))) == 2


@shared
@given(frame=pod_frames(OWN.pod, PEER.pod))
def test_kernel_to_bpf(frame: bytes, node6: Load, kernel6: KernelNode6) -> None:
    got = node6(as_peer(VXLAN)).run("fl_from_peer", to_uplink(kernel6.encapsulated(frame)))
    assert got.verdict == REDIRECT
    assert hops_away(frame, got.frame) == 2
