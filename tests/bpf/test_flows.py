"""The life of a flow: what opens it, what closes it, and whom the learning mark touches."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.abi import FlowBit, PodFlag, Reason
from tests.bpf.conversation import TCP_KEY, UDP_KEY, Conversation, NodeWith, node, tcp, to_pod, udp
from tests.bpf.frames import from_pod, l4, on_wire, packet, vxlan
from tests.bpf.node import (
    DIRECT,
    FLOWS,
    KERNEL,
    MARK,
    OTHER_MAC,
    OTHER_POD,
    OTHER_PORT,
    PEER,
    POD,
    POD_PORT,
    REDIRECT,
    UDP,
    Node,
    skb_context,
)

__all__ = ["node", "tcp", "udp"]

BACKENDS = [FLOWS, replace(DIRECT, fastpath=FLOWS.fastpath), replace(UDP, fastpath=FLOWS.fastpath)]
ALL = FlowBit.TX_ENTERED | FlowBit.TX_LEFT | FlowBit.RX_ARRIVED | FlowBit.RX_DELIVERED


def key_of(kind: str) -> abi.FlowKey:
    return abi.FlowKey(POD, PEER.pod, 4000, 4000, 1) if kind == "ping" else UDP_KEY


@pytest.mark.parametrize("kind", ["udp", "ping"])
def test_a_direction_opens_alone(kind: str, node: Node) -> None:
    talk = Conversation(node, kind)
    talk.learn_tx()
    assert talk.enter().verdict == REDIRECT
    assert talk.arrive().reason == Reason.LEARN_NEW
    talk.learn_rx()
    assert talk.arrive().verdict == REDIRECT
    flow = node.flow(key_of(kind))
    assert flow is not None
    assert (flow.bits, flow.ifindex) == (ALL, POD_PORT)


def test_tcp_opens_only_when_both_directions_are_seen(tcp: Conversation) -> None:
    tcp.learn_tx()
    assert tcp.enter().reason == Reason.LEARN_NEW
    tcp.learn_rx()
    assert tcp.enter().verdict == REDIRECT
    assert tcp.arrive().verdict == REDIRECT


@pytest.mark.parametrize("config", BACKENDS, ids=["vxlan", "direct", "udp"])
@pytest.mark.parametrize("kind", ["tcp", "udp", "ping"])
def test_every_backend_learns(config: abi.Config, kind: str, node_with: NodeWith) -> None:
    node = node_with(config)
    node.fill_sketch()
    talk = Conversation(node, kind)
    talk.learn_tx()
    talk.learn_rx()
    assert (talk.enter().verdict, talk.arrive().verdict) == (REDIRECT, REDIRECT)


@pytest.mark.parametrize("flags", ["S", "SA", "FA", "R", "RA"])
@pytest.mark.parametrize("direction", ["enter", "arrive"])
def test_tcp_state_changes_end_the_flow(flags: str, direction: str, tcp: Conversation) -> None:
    tcp.learn_tx()
    tcp.learn_rx()
    ran = getattr(tcp, direction)(flags)
    assert (ran.verdict, ran.reason, ran.mark) == (KERNEL, Reason.TCP_STATE, 0)
    assert tcp.node.flow(TCP_KEY) is None
    assert getattr(tcp, direction)().reason == (Reason.LEARN_YOUNG if "S" in flags else Reason.LEARN_NEW)


@pytest.mark.parametrize("direction", ["tx_since", "rx_since"])
def test_tcp_closes_when_its_other_direction_is_long_silent(direction: str, tcp: Conversation) -> None:
    tcp.learn_tx()
    tcp.learn_rx()
    flow = tcp.node.flow(TCP_KEY)
    assert flow is not None
    long_ago = time.monotonic_ns() - 2 * FLOWS.revalidate_ms * 1_000_000 - 1_000_000_000
    tcp.node.put_flow(TCP_KEY, replace(flow, **{direction: long_ago}))
    assert tcp.enter().verdict == KERNEL
    assert tcp.arrive().verdict == KERNEL


def test_an_old_opening_is_tried_again(udp: Conversation) -> None:
    udp.learn_tx()
    udp.learn_rx()
    flow = udp.node.flow(UDP_KEY)
    assert flow is not None
    long_ago = time.monotonic_ns() - FLOWS.revalidate_ms * 1_000_000 - 1_000_000_000
    udp.node.put_flow(UDP_KEY, replace(flow, tx_since=long_ago))
    ran = udp.enter()
    assert (ran.reason, ran.mark) == (Reason.LEARN_REVALIDATE, MARK)
    assert udp.enter().reason == Reason.LEARN_NEW, "closed until the kernel has let one out"
    assert udp.arrive().verdict == REDIRECT, "the other direction stays open"
    udp.leave(ran)
    assert udp.enter().verdict == REDIRECT


def test_an_opening_lasts_as_long_as_said(udp: Conversation) -> None:
    udp.learn_tx()
    flow = udp.node.flow(UDP_KEY)
    assert flow is not None
    nearly = time.monotonic_ns() - FLOWS.revalidate_ms * 1_000_000 + 2_000_000_000
    udp.node.put_flow(UDP_KEY, replace(flow, tx_since=nearly))
    assert udp.enter().verdict == REDIRECT


def test_a_packet_that_nat_changed_opens_nothing(udp: Conversation) -> None:
    ran = udp.enter()
    changed = bytes(from_pod(src=IPv4Address("192.0.2.1")))
    seen = udp.node.run("fl_to_peer", changed, mark=ran.mark)
    assert seen.reason == Reason.LEARN_CHANGED
    assert udp.enter().reason == Reason.LEARN_NEW


def test_a_dnat_reply_opens_nothing(udp: Conversation) -> None:
    """The pod spoke to a ClusterIP: the reply's source on the wire is not the one that the pod sees."""
    ran = udp.arrive()
    translated = packet(IPv4Address("10.96.0.10"), POD, l4(sport=5000, dport=4000), ttl=62)
    assert udp.node.run("fl_to_pod", to_pod(translated), mark=ran.mark).reason == Reason.LEARN_CHANGED
    assert udp.arrive().reason == Reason.LEARN_NEW


def test_unmarked_packets_teach_nothing(udp: Conversation) -> None:
    ran = udp.enter()
    assert udp.leave(replace(ran, mark=0)).reason is None
    assert udp.enter().reason == Reason.LEARN_NEW


def test_foreign_mark_bits_survive(node: Node) -> None:
    foreign = 0x4000
    ran = node.run("fl_from_pod", bytes(from_pod()), mark=foreign)
    assert ran.mark == foreign | MARK
    assert node.run("fl_to_peer", ran.frame, mark=ran.mark).mark == foreign


@pytest.mark.parametrize(
    ("program", "frame"),
    [
        ("fl_from_pod", from_pod(dst=OTHER_POD)),
        ("fl_from_pod", from_pod(dst=IPv4Address("203.0.113.5"))),
        ("fl_from_pod", from_pod(src=IPv4Address("203.0.113.5"))),
        ("fl_from_pod", Ether() / ARP()),
        ("fl_from_peer", on_wire(packet(PEER.pod, POD))),
        ("fl_from_peer", vxlan(packet(PEER.pod, IPv4Address("203.0.113.5")))),
        ("fl_from_peer", vxlan(vni=7)),
    ],
)
def test_only_overlay_packets_are_marked(program: str, frame: Packet, node: Node) -> None:
    assert node.run(program, bytes(frame)).mark == 0


def test_another_veth_starts_the_flow_anew(udp: Conversation) -> None:
    udp.learn_tx()
    udp.learn_rx()
    udp.node.forget_pod(POD)
    ran = udp.enter(ifindex=OTHER_PORT)
    assert (ran.reason, ran.verdict) == (Reason.LEARN_NEW, KERNEL)
    flow = udp.node.flow(UDP_KEY)
    assert flow is not None
    assert (flow.ifindex, flow.bits) == (OTHER_PORT, FlowBit.TX_ENTERED)


def test_an_impostor_cannot_end_a_flow(tcp: Conversation) -> None:
    tcp.learn_tx()
    tcp.learn_rx()
    assert tcp.enter("R", ifindex=OTHER_PORT).reason == Reason.DROP_POD_SOURCE
    assert tcp.enter().verdict == REDIRECT


def test_a_flow_to_a_pod_that_moved_is_learned_again(udp: Conversation) -> None:
    udp.learn_rx()
    udp.node.add_pod(POD, ifindex=OTHER_PORT)
    assert udp.arrive().reason == Reason.LEARN_NEW
    udp.deliver(udp.arrive(), ifindex=OTHER_PORT)
    assert udp.arrive().verdict == REDIRECT


def test_an_open_flow_to_a_forgotten_pod_teaches_it(udp: Conversation) -> None:
    udp.learn_rx()
    udp.node.forget_pod(POD)
    ran = udp.arrive()
    assert (ran.reason, ran.mark) == (Reason.NO_POD, MARK)
    udp.deliver(ran)
    assert udp.arrive().verdict == REDIRECT


def test_a_full_table_only_means_the_kernel_path(node: Node) -> None:
    for port in range(1, 2000):
        node.programs["fl_from_pod"].test_run(bytes(from_pod(l4(sport=port))), skb_context(ifindex=POD_PORT))
    node.fill_sketch()  # on a slow machine those packets take longer than counts last
    talk = Conversation(node, "udp")
    talk.learn_tx()
    assert talk.enter().verdict == REDIRECT


def test_shaped_pods_never_enter(udp: Conversation) -> None:
    udp.node.forget_pod(POD)
    udp.node.set_port(POD_PORT, PodFlag.SHAPED)
    assert udp.enter().reason == Reason.SHAPED
    udp.deliver(udp.arrive())
    assert udp.arrive().reason == Reason.SHAPED
    assert udp.enter().reason == Reason.SHAPED


def test_other_pods_are_not_concerned(udp: Conversation) -> None:
    udp.learn_tx()
    assert udp.enter().verdict == REDIRECT
    udp.node.add_pod(OTHER_POD, OTHER_PORT, OTHER_MAC)
    other = udp.node.run("fl_from_pod", bytes(from_pod(src=OTHER_POD)), ifindex=OTHER_PORT)
    assert other.reason == Reason.LEARN_NEW
