"""Packets cut at every length and bent in every way: each ends in one reason and none in a pod by mistake."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import IP
from scapy.packet import Packet, Raw

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Reason
from tests.bpf.frames import from_pod, l4, on_wire, packet, udp_tunnel, vxlan
from tests.bpf.node import DIRECT, DROP, FLOWS, KERNEL, PEER, POD, REDIRECT, UDP, VXLAN, XDP_PASS, Node

NodeWith = Callable[[abi.Config], Node]
THREEFOLD = settings(
    max_examples=3 * settings.default.max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
SHORTEST = 34  # BPF_PROG_TEST_RUN wants an IPv4 header behind EtherType 0x0800
SHORTEST_NOISE = 54  # and an IPv6 header behind 0x86dd

WHOLE: list[tuple[str, abi.Config, Packet]] = [
    ("fl_from_pod", VXLAN, from_pod(l4("tcp"))),
    ("fl_from_pod", VXLAN, from_pod(l4("udp"))),
    ("fl_from_pod", VXLAN, from_pod(l4("ping"))),
    ("fl_from_pod", FLOWS, from_pod(l4("tcp"))),
    ("fl_from_pod", DIRECT, from_pod(l4("tcp"))),
    ("fl_from_pod", UDP, from_pod(l4("tcp"))),
    ("fl_from_peer", VXLAN, vxlan(packet(PEER.pod, POD, l4("tcp")))),
    ("fl_from_peer", VXLAN, vxlan(packet(PEER.pod, POD, l4("ping")))),
    ("fl_from_peer", FLOWS, vxlan(packet(PEER.pod, POD, l4("tcp")))),
    ("fl_from_peer", DIRECT, on_wire(packet(PEER.pod, POD, l4("tcp")))),
    ("fl_from_peer", UDP, udp_tunnel(packet(PEER.pod, POD, l4("tcp")))),
    ("fl_to_peer", FLOWS, from_pod(l4("tcp"))),
    ("fl_to_pod", FLOWS, from_pod(l4("tcp"), src=PEER.pod, dst=POD)),
]


@pytest.mark.parametrize(("program", "config", "frame"), WHOLE)
def test_no_cut_packet_is_carried(
    program: str, config: abi.Config, frame: Packet, node_with: NodeWith
) -> None:
    node, raw = node_with(config), bytes(frame)
    ticket = 1 if program.startswith("fl_to") else 0
    for length in range(SHORTEST, len(raw)):
        ran = node.run(program, raw[:length], ticket=ticket)
        assert (ran.verdict, ran.frame) == (KERNEL, raw[:length]), length
        assert ran.reason is not None, length


@pytest.mark.parametrize("frame", [vxlan(packet(PEER.pod, POD, l4("tcp"))), on_wire(packet(PEER.pod, POD))])
def test_xdp_passes_cut_packets(frame: Packet, node_with: NodeWith) -> None:
    node, raw = node_with(VXLAN), bytes(frame)
    for length in range(SHORTEST, len(raw)):
        ran = node.run("fl_xdp", raw[:length])
        assert (ran.verdict, ran.frame) == (XDP_PASS, raw[:length]), length


@pytest.mark.parametrize("shorter", range(1, 60))
def test_inner_packet_cut_inside_a_sound_tunnel(shorter: int, node_with: NodeWith) -> None:
    """Outer lengths fit the frame; the inner packet claims more than there is."""
    inner = bytes(packet(PEER.pod, POD, l4("tcp", payload=b"")))
    ran = node_with(VXLAN).run("fl_from_peer", bytes(vxlan(Raw(inner[:-shorter]))))
    assert ran.verdict == KERNEL
    assert ran.reason in (Reason.TRUNCATED, Reason.BAD_HEADER, Reason.NOT_FAMILY)


@THREEFOLD
@given(noise=st.binary(min_size=SHORTEST_NOISE, max_size=200))
@pytest.mark.parametrize("program", ["fl_from_pod", "fl_from_peer", "fl_to_peer", "fl_to_pod", "fl_xdp"])
def test_noise_is_left_alone(program: str, noise: bytes, node_with: NodeWith) -> None:
    ticket = 1 if program.startswith("fl_to") else 0
    ran = node_with(FLOWS).run(program, noise, ticket=ticket)
    assert ran.verdict in (KERNEL, XDP_PASS)
    assert ran.frame == noise
    assert ran.reason is not None


@THREEFOLD
@given(noise=st.binary(max_size=200), config=st.sampled_from([VXLAN, FLOWS]))
def test_noise_in_a_tunnel_is_left_alone(noise: bytes, config: abi.Config, node_with: NodeWith) -> None:
    frame = bytes(vxlan(Raw(noise)))
    ran = node_with(config).run("fl_from_peer", frame)
    assert ran.frame == frame
    assert ran.verdict in (KERNEL, DROP)


@THREEFOLD
@given(
    ip=st.fixed_dictionaries(
        {},
        optional={
            "version": st.integers(0, 15),
            "ihl": st.integers(0, 15),
            "len": st.integers(0, 200),
            "flags": st.integers(0, 7),
            "frag": st.integers(0, 8191),
            "ttl": st.integers(0, 255),
            "proto": st.integers(0, 255),
            "chksum": st.integers(0, 65535),
        },
    )
)
def test_bent_ipv4_headers_are_carried_only_when_sound(ip: dict[str, int], node_with: NodeWith) -> None:
    frame = from_pod(**ip)
    ran = node_with(VXLAN).run("fl_from_pod", bytes(frame))
    sound = (
        ip.get("version", 4) == 4
        and ip.get("ihl", 5) == 5
        and ip.get("len", len(frame) - 14) == len(frame) - 14
        and not ip.get("flags", 0) & 1
        and not ip.get("frag", 0)
        and ip.get("ttl", 64) > 1
        and ("chksum" not in ip or ip["chksum"] == IP(bytes(from_pod(**(ip | {"chksum": None}))[IP])).chksum)
    )
    if not sound:
        assert (ran.verdict, ran.frame) == (KERNEL, bytes(frame))
    elif ip.get("proto", 17) == 17:
        assert ran.verdict == REDIRECT
