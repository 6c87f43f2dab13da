"""Peers without kernel objects: frames for the station of all peers find theirs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.abi import ANY_PEER_MAC
from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import OUTSIDE
from tests.bpf.conversation import leaving
from tests.bpf.frames import from_pod, l4, packet
from tests.bpf.node import DROP, FLOWS, KERNEL, OVERLAY, PEER, POD, REDIRECT, STRANGER, UDP, Node, remote

NodeWith = Callable[[abi.Config], Node]


def first(inner: IP) -> bytes:
    """Return the frame that the kernel makes of a packet to a peer that has no objects of its own."""
    return leaving(FLOWS.backend, inner, ANY_PEER_MAC)


def unknown(node: Node, **changes: object) -> Node:
    """Make the peer one that the kernel was never seen to exchange packets with."""
    node.add_peer(PEER, replace(PEER.peer(FLOWS.backend, outer=""), **changes))  # type: ignore[arg-type]  # a test's
    return node


@pytest.mark.parametrize(
    "inner",
    [
        packet(POD, PEER.pod),
        packet(POD, PEER.pod, l4("tcp")),
        packet(POD, PEER.pod, ICMP()),
        packet(POD, PEER.pod, ICMP(type=3, code=4) / Raw(bytes(28))),
        packet(POD, PEER.pod, flags="MF"),
        packet(POD, PEER.pod, frag=20),
        packet(POD, PEER.pod, Raw(b"z"), proto=17, frag=20),
        packet(POD, PEER.pod, Raw(b""), proto=17),
        packet(POD, PEER.pod, options=b"\x94\x04\x00\x00"),
        packet(POD, PEER.pod, Raw(bytes(60)), proto=132),
        packet(OUTSIDE, PEER.pod),
    ],
    ids=[
        "UDP",
        "TCP",
        "ping",
        "ICMP error",
        "first fragment",
        "later fragment",
        "one byte of a fragment",
        "no byte at all",
        "options",
        "SCTP",
        "masqueraded",
    ],
)
def test_the_first_packet_goes_as_a_later_one(inner: IP, node_with: NodeWith) -> None:
    usual = node_with(FLOWS).run("fl_to_peer", leaving(FLOWS.backend, packet(POD, PEER.pod)))
    node = unknown(node_with(FLOWS))
    ran = node.run("fl_to_peer", first(inner))
    assert (ran.reason, ran.verdict) == (None, REDIRECT)
    assert ran.frame[64:] == bytes(inner)
    assert ran.frame[50:64] == usual.frame[50:64], "the peer's VTEP, ours"
    outer, as_usual = IP(ran.frame[14:]), IP(usual.frame[14:])
    assert (outer.dst, outer.ttl, outer.len) == (as_usual.dst, as_usual.ttl, len(inner) + 50)
    assert node.asked(PEER) == 1


def test_the_daemon_learns_how_much_was_asked_for(node_with: NodeWith) -> None:
    node = unknown(node_with(FLOWS))
    for _ in range(5):
        node.run("fl_to_peer", first(packet(POD, PEER.pod)))
    assert (node.asked(PEER), node.asked(remote(3))) == (5, 0)


def test_it_is_the_only_way_so_a_silent_daemon_ends_it_not(node_with: NodeWith) -> None:
    node = unknown(node_with(FLOWS))
    node.set_until(time.monotonic_ns() - 1, OVERLAY)
    assert node.run("fl_to_peer", first(packet(POD, PEER.pod))).verdict == REDIRECT


@pytest.mark.parametrize(
    ("what", "pod", "changes"),
    [
        ("nobody's", STRANGER.pod, {}),
        ("a peer that is the kernel's, as IPsec wants it", PEER.pod, {"mode": enums.Mode.NONE}),
        ("too long for the way", PEER.pod, {"mtu": 60}),
    ],
)
def test_what_has_no_way_is_dropped_and_counted(
    what: str, pod: object, changes: dict[str, object], node_with: NodeWith
) -> None:
    node = unknown(node_with(FLOWS), **changes)
    frame = first(packet(POD, pod))
    ran = node.run("fl_to_peer", frame)
    assert (ran.reason, ran.verdict, ran.frame) == (Reason.DROP_NO_PEER, DROP, frame), what


def test_it_is_dropped_whatever_sources_are_checked(node_with: NodeWith) -> None:
    node = node_with(replace(FLOWS, source_check=enums.Check.OFF))
    assert node.run("fl_to_peer", first(packet(POD, STRANGER.pod))).verdict == DROP


def test_what_the_kernel_carried_so_far_is_learned(node_with: NodeWith) -> None:
    """The inner leg is the kernel's as ever: only who puts the headers on is another."""
    node = unknown(node_with(FLOWS))
    node.fill_sketch(learned=100)
    began = node.run("fl_from_pod", bytes(from_pod()))
    assert began.ticket, began
    left = node.run("fl_to_peer", first(packet(POD, PEER.pod, ttl=63)), ticket=began.ticket)
    assert (left.reason, left.verdict) == (Reason.LEARN_LEFT, REDIRECT)


def test_other_backends_know_no_such_station(node_with: NodeWith) -> None:
    node = node_with(replace(UDP, backend=enums.Mode.DIRECT))
    frame = first(packet(POD, PEER.pod))
    ran = node.run("fl_to_peer", frame)
    assert (ran.verdict, ran.frame) == (KERNEL, frame)
