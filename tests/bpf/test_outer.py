"""The outer leg: whose it is, and that BPF does it as the kernel would."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import OUTSIDE
from tests.bpf.cases_learning import BY_KERNEL, sent
from tests.bpf.conversation import leaving, to_pod
from tests.bpf.frames import from_pod, l4, packet, udp_tunnel, vxlan
from tests.bpf.node import (
    FLOWS,
    KERNEL,
    NEXT_HOP_MAC,
    OVERLAY,
    OWN_VTEP,
    PEER,
    POD,
    REDIRECT,
    STRANGER,
    UDP,
    UPLINK,
    UPLINK_MAC,
    VXLAN,
    Node,
    as_peer,
)

NodeWith = Callable[[abi.Config], Node]
TUNNELS = {"vxlan": (FLOWS, vxlan), "udp": (replace(UDP, fastpath=FLOWS.fastpath), udp_tunnel)}
ETH = 14
REVALIDATE = FLOWS.revalidate_ms * 10**6


def seconds_left(until: int) -> float:
    return (until - time.monotonic_ns()) / 1e9


@pytest.mark.parametrize("kind", TUNNELS)
def test_what_the_kernel_sends_opens_the_way_out(kind: str, node_with: NodeWith) -> None:
    config, tunnel = TUNNELS[kind]
    node = node_with(replace(config, fastpath=enums.Fastpath.SUBNETS))
    node.add_peer(PEER, PEER.peer(config.backend, outer=""))
    assert node.run("fl_from_pod", bytes(from_pod())).reason == Reason.LEARN_PEER
    frame = sent(tunnel(packet(POD, PEER.pod, ttl=63)))
    left = node.run("fl_to_peer", frame, ticket=BY_KERNEL if kind == "vxlan" else 0, ifindex=UPLINK)
    assert (left.reason, left.verdict, left.ticket) == (Reason.LEARN_LEFT, KERNEL, 0)
    assert 9 < seconds_left(node.peer(PEER).tx_until) <= REVALIDATE / 1e9 + 0.1
    assert node.peer(PEER).rx_until == 0
    if kind == "vxlan":
        assert node.run("fl_from_pod", bytes(from_pod())).verdict == REDIRECT


def test_a_relay_sends_alone_until_the_other_node_knows_its_way_in(node_with: NodeWith) -> None:
    """What programs send may lack its checksum, which no relay can make up for."""
    node = node_with(replace(UDP, fastpath=enums.Fastpath.SUBNETS))
    node.add_peer(PEER, PEER.peer(UDP.backend, outer=""))
    frame = sent(udp_tunnel(packet(POD, PEER.pod, ttl=63)))
    node.run("fl_to_peer", frame, ifindex=UPLINK)
    begun = node.peer(PEER).tx_until
    assert node.run("fl_from_pod", bytes(from_pod())).reason == Reason.LEARN_PEER
    node.run("fl_to_peer", frame, ifindex=UPLINK)
    assert node.peer(PEER).tx_until == begun, "each packet of the relay's would put it off"
    node.add_peer(PEER, replace(node.peer(PEER), tx_until=begun - REVALIDATE // 32))
    assert node.run("fl_from_pod", bytes(from_pod())).verdict == REDIRECT


def test_a_relay_that_only_shows_the_way_again_does_not_send_alone(node_with: NodeWith) -> None:
    node = node_with(replace(UDP, fastpath=enums.Fastpath.SUBNETS))
    node.add_peer(PEER, replace(PEER.peer(UDP.backend), tx_until=time.monotonic_ns() - 10**9))
    assert node.run("fl_from_pod", bytes(from_pod())).reason == Reason.LEARN_PEER
    node.run("fl_to_peer", sent(udp_tunnel(packet(POD, PEER.pod, ttl=63))), ifindex=UPLINK)
    assert node.run("fl_from_pod", bytes(from_pod())).verdict == REDIRECT


ODD_OUTSIDE = {
    "another destination": {"dst": str(STRANGER.public_ip)},
    "another source": {"src": str(STRANGER.public_ip)},
    "DSCP": {"tos": 0xB8},
    "TTL": {"ttl": 33},
    "options": {"options": b"\x94\x04\x00\x00"},
    "protocol": {"proto": 50},
}


@pytest.mark.parametrize("what", ODD_OUTSIDE)
def test_what_the_kernel_sends_otherwise_opens_nothing(what: str, node_with: NodeWith) -> None:
    """Marked by a rule, translated, encrypted: BPF would have sent something else."""
    node = node_with(FLOWS)
    node.add_peer(PEER, PEER.peer(FLOWS.backend, outer=""))
    frame = sent(vxlan(packet(POD, PEER.pod, ttl=63)), **ODD_OUTSIDE[what])
    node.run("fl_to_peer", frame, ticket=BY_KERNEL, ifindex=UPLINK)
    assert node.peer(PEER).tx_until == 0


def test_what_bpf_sent_itself_opens_nothing(node_with: NodeWith) -> None:
    """With udp every packet on the wire is looked at, because a relay's carries no ticket."""
    node = node_with(UDP)
    frame = node.run("fl_from_pod", bytes(from_pod()))
    assert frame.verdict == REDIRECT
    node.add_peer(PEER, PEER.peer(UDP.backend, outer=""))
    node.run("fl_to_peer", bytes(Ether(frame.frame)), ticket=frame.ticket, ifindex=UPLINK)
    assert node.peer(PEER).tx_until == 0


@pytest.mark.parametrize("kind", TUNNELS)
def test_what_the_kernel_takes_from_the_tunnel_opens_the_way_in(kind: str, node_with: NodeWith) -> None:
    config, tunnel = TUNNELS[kind]
    node = node_with(replace(config, fastpath=enums.Fastpath.SUBNETS))
    node.add_peer(PEER, PEER.peer(config.backend, outer=""))
    came = node.run("fl_from_peer", bytes(tunnel()))
    assert (came.reason, came.ticket) == (Reason.LEARN_PEER, BY_KERNEL)
    inner = packet(PEER.pod, POD)
    frame = bytes(inner) if kind == "udp" else to_pod(inner)
    inside = node.run("fl_from_peer", frame, ticket=came.ticket if kind == "vxlan" else 0, ifindex=OVERLAY)
    assert (inside.reason, inside.verdict, inside.ticket) == (None, KERNEL, 0)
    assert node.peer(PEER).tx_until == 0
    assert node.run("fl_from_peer", bytes(tunnel())).verdict == REDIRECT


def test_an_outer_leg_ends_like_an_opening(node_with: NodeWith) -> None:
    node = node_with(replace(VXLAN, revalidate_ms=1500))
    frame = sent(vxlan(packet(POD, PEER.pod, ttl=63)))
    node.run("fl_to_peer", frame, ticket=BY_KERNEL, ifindex=UPLINK)
    begun = time.monotonic()
    while node.run("fl_from_pod", bytes(from_pod())).verdict == REDIRECT:
        assert time.monotonic() - begun < 20
    assert time.monotonic() - begun > 1.4


def test_what_programs_send_finds_udp_open_while_the_relay_shows_it_again(node_with: NodeWith) -> None:
    """No relay can read what waits for its checksum; the other node's relay shows the way twice as often."""
    node = node_with(UDP)
    peer = PEER.peer(UDP.backend)
    for left, relay_too in ((1.5, True), (0.5, False)):
        until = time.monotonic_ns() + int(left * REVALIDATE)
        node.add_peer(PEER, replace(peer, rx_until=until))
        assert node.run("fl_from_peer", bytes(udp_tunnel())).verdict == REDIRECT
        by_relay = node.run("fl_from_peer", bytes(udp_tunnel(checksum=0x1234)))
        assert (by_relay.verdict == REDIRECT) == relay_too


@pytest.mark.parametrize("body", ["udp", "tcp", "tcp:S", "ping"])
def test_a_wrapped_packet_is_the_kernels_inside(body: str, node_with: NodeWith) -> None:
    """Of vxlan: a test run cannot have a packet without a link layer, as a TUN has."""
    inner = packet(POD, PEER.pod, l4(body), ttl=63, tos=0x12)
    ran = node_with(FLOWS).run("fl_to_peer", leaving(FLOWS.backend, inner))
    assert ran.verdict == REDIRECT
    assert ran.frame[50:64] == PEER.vtep.octets + OWN_VTEP.octets + b"\x08\x00"
    assert ran.frame[64:] == bytes(inner)
    outer = IP(ran.frame[ETH:])
    assert (outer.dst, outer.len) == (str(PEER.public_ip), len(inner) + 50)
    far = node_with(as_peer(VXLAN))
    assert far.run("fl_from_peer", UPLINK_MAC.octets + ran.frame[6:]).verdict == REDIRECT


@pytest.mark.parametrize(
    "inner",
    [
        packet(POD, PEER.pod, flags="MF"),
        packet(POD, PEER.pod, frag=20),
        packet(POD, PEER.pod, options=b"\x94\x04\x00\x00"),
        packet(POD, PEER.pod, Raw(bytes(60)), proto=132),
        packet(OUTSIDE, PEER.pod),
    ],
    ids=["first fragment", "later fragment", "options", "SCTP", "masqueraded"],
)
def test_whatever_the_kernel_puts_into_a_vxlan_is_wrapped(inner: IP, node_with: NodeWith) -> None:
    ran = node_with(FLOWS).run("fl_to_peer", leaving(FLOWS.backend, inner))
    assert ran.verdict == REDIRECT
    assert ran.frame[64:] == bytes(inner)


@pytest.mark.parametrize(
    ("what", "frame"),
    [
        ("too large", leaving(FLOWS.backend, packet(POD, PEER.pod, l4(payload=bytes(1423))))),
        ("for another VTEP", leaving(FLOWS.backend, packet(POD, PEER.pod), NEXT_HOP_MAC)),
        ("with bytes behind it", leaving(FLOWS.backend, packet(POD, PEER.pod)) + b"x"),
        ("to a subnet of nobody", leaving(FLOWS.backend, packet(POD, STRANGER.pod))),
    ],
)
def test_what_is_not_wrapped_is_whole(what: str, frame: bytes, node_with: NodeWith) -> None:
    ran = node_with(FLOWS).run("fl_to_peer", frame)
    assert (ran.verdict, ran.frame) == (KERNEL, frame), what


@pytest.mark.parametrize("kind", TUNNELS)
def test_an_unwrapped_packet_is_as_the_device_has_it(kind: str, node_with: NodeWith) -> None:
    config, tunnel = TUNNELS[kind]
    node = node_with(config).with_overlay()
    node.clear_sketch()
    inner = packet(PEER.pod, POD, tos=2)
    ran = node.run("fl_from_peer", bytes(tunnel(inner)))
    assert (ran.reason, ran.verdict) == (Reason.LEARN_YOUNG, REDIRECT)
    got = IP(ran.frame[ETH:])
    assert got.ttl == (63 if kind == "udp" else 64)
    got.ttl, got.chksum = 64, IP(bytes(inner)).chksum
    assert bytes(got) == bytes(inner)
    if kind == "vxlan":
        assert ran.frame[:14] == OWN_VTEP.octets + PEER.vtep.octets + b"\x08\x00"


def test_congestion_outside_is_told_inside(node_with: NodeWith) -> None:
    node = node_with(FLOWS).with_overlay()
    node.clear_sketch()
    ran = node.run("fl_from_peer", bytes(vxlan(packet(PEER.pod, POD, tos=2), tos=3)))
    assert (ran.verdict, IP(ran.frame[ETH:]).tos) == (REDIRECT, 3)


@pytest.mark.parametrize("learning", [True, False], ids=["device that learns", "no device"])
def test_who_must_see_tunnel_packets_itself_does(learning: bool, node_with: NodeWith) -> None:
    node = node_with(replace(FLOWS, learning=learning))
    node.set_until(2**64 - 1, OVERLAY if learning else 0)
    node.clear_sketch()
    frame = bytes(vxlan())
    ran = node.run("fl_from_peer", frame)
    assert (ran.verdict, ran.frame) == (KERNEL, frame)


def test_a_super_packet_of_vxlan_is_opened_by_the_kernel(node_with: NodeWith) -> None:
    node = node_with(FLOWS).with_overlay()
    node.fill_sketch()
    frame = bytes(vxlan(packet(PEER.pod, POD, l4("tcp", payload=bytes(3000)))))
    ran = node.run("fl_from_peer", frame, gso_size=1410, gso_segs=3)
    assert (ran.verdict, ran.frame) == (KERNEL, frame)
    assert 0 < ran.ticket < BY_KERNEL, "its lesson goes with it"
