"""The life of a flow: what opens it, what closes it, how long it stays open."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Packet

from flannel_ebpf.contract import abi, learned
from flannel_ebpf.contract.enums import PodFlag, Reason
from tests.bpf.conversation import TCP_KEY, UDP_KEY, Conversation, NodeWith, node, tcp, udp
from tests.bpf.frames import from_pod, l4, on_wire, packet, vxlan
from tests.bpf.node import (
    DIRECT,
    FLOWS,
    KERNEL,
    OTHER_MAC,
    OTHER_POD,
    OTHER_PORT,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    REDIRECT,
    UDP,
    Node,
    a_flow,
)

__all__ = ["node", "tcp", "udp"]

BACKENDS = [FLOWS, replace(DIRECT, fastpath=FLOWS.fastpath), replace(UDP, fastpath=FLOWS.fastpath)]
REVALIDATE = FLOWS.revalidate_ms * 1_000_000
SECOND = 10**9


@pytest.mark.parametrize("kind", ["udp", "ping"])
def test_a_direction_opens_alone(kind: str, node: Node) -> None:
    talk = Conversation(node, kind)
    talk.learn_tx()
    assert talk.enter().verdict == REDIRECT
    assert talk.arrive().reason == Reason.LEARN_NEW
    talk.learn_rx()
    assert talk.arrive().verdict == REDIRECT
    flow = node.flow(talk.key)
    assert flow is not None
    assert flow.ifindex == POD_PORT
    assert flow.sent > 0
    assert flow.heard > 0


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
    talk.learn()
    assert (talk.enter().verdict, talk.arrive().verdict) == (REDIRECT, REDIRECT)


@pytest.mark.parametrize("flags", ["S", "FA", "R", "RA", "F"])
@pytest.mark.parametrize("direction", ["enter", "arrive"])
def test_an_end_or_a_new_beginning_ends_the_flow(flags: str, direction: str, tcp: Conversation) -> None:
    """What follows an end is young again: an entry for it would stay until it is evicted."""
    tcp.learn()
    ran = getattr(tcp, direction)(flags)
    assert (ran.verdict, ran.reason) == (
        KERNEL,
        Reason.LEARN_SYN if flags == "S" else Reason.TCP_STATE,
    )
    assert tcp.node.flow(TCP_KEY) is None
    assert (tcp.enter().reason, tcp.arrive().reason) == (Reason.LEARN_YOUNG, Reason.LEARN_YOUNG)


@pytest.mark.parametrize("flags", ["", "P", "U", "SF", "SR", "SFPU", "FPU"])
def test_odd_flags_are_conntracks(flags: str, tcp: Conversation) -> None:
    """conntrack calls them invalid, and rules may drop them."""
    tcp.learn()
    frame = bytearray(bytes(from_pod(l4("tcp"))))
    frame[47] = {"F": 1, "S": 2, "R": 4, "P": 8, "U": 32}.get(flags, 0)
    for flag, bit in (("F", 1), ("S", 2), ("R", 4), ("P", 8), ("U", 32)):
        frame[47] |= bit if flag in flags else 0
    ran = tcp.node.run("fl_from_pod", bytes(frame))
    assert (ran.verdict, ran.reason) == (KERNEL, Reason.TCP_STATE)


@pytest.mark.parametrize("direction", ["tx", "rx"])
def test_tcp_closes_when_its_other_direction_is_long_silent(direction: str, tcp: Conversation) -> None:
    now = time.monotonic_ns()
    times = {"tx": now, "rx": now} | {direction: now - 2 * REVALIDATE - SECOND}
    tcp.node.put_flow(TCP_KEY, a_flow(TCP_KEY, **times))
    assert tcp.enter().verdict == KERNEL
    assert tcp.arrive().verdict == KERNEL


def test_an_old_opening_is_tried_again(udp: Conversation) -> None:
    now = time.monotonic_ns()
    udp.node.put_flow(UDP_KEY, a_flow(UDP_KEY, now - REVALIDATE - SECOND, now))
    ran = udp.enter()
    assert (ran.verdict, ran.reason) == (KERNEL, Reason.LEARN_REVALIDATE)
    assert udp.enter().reason == Reason.LEARN_REVALIDATE, "closed until the kernel has let one out"
    assert udp.arrive().verdict == REDIRECT, "the other direction stays open"
    udp.learn_tx()
    assert udp.enter().verdict == REDIRECT


def test_an_opening_lasts_as_long_as_said(tcp: Conversation) -> None:
    nearly = time.monotonic_ns() - REVALIDATE + 2 * SECOND
    tcp.node.put_flow(TCP_KEY, a_flow(TCP_KEY, nearly, nearly))
    assert tcp.enter().verdict == REDIRECT


@pytest.mark.parametrize(("age", "carried_at", "is_open"), [(3, 1, False), (3, 2.5, True), (1.5, 1, True)])
def test_udp_shows_conntrack_a_packet_after_two_seconds(
    age: float, carried_at: float, is_open: bool, udp: Conversation
) -> None:
    """Else conntrack does not take it for a stream, and forgets it four times as early."""
    born = time.monotonic_ns() - int(age * SECOND)
    udp.node.put_flow(UDP_KEY, a_flow(UDP_KEY, born + int(carried_at * SECOND), born=born))
    assert (udp.enter().verdict == REDIRECT) == is_open


def test_a_flow_that_rested_is_young_again(udp: Conversation) -> None:
    """conntrack has forgotten it, too: it will not take it for a stream before it has lasted two seconds."""
    long_ago = time.monotonic_ns() - 3 * REVALIDATE
    udp.node.put_flow(UDP_KEY, a_flow(UDP_KEY, long_ago, long_ago, born=long_ago))
    udp.learn_tx()
    flow = udp.node.flow(UDP_KEY)
    assert flow is not None
    assert time.monotonic_ns() - (flow.born << learned.TIME_SHIFT) < SECOND
    assert flow.heard == 0


@pytest.mark.parametrize("days", [0, 1, 20, 26, 27, 40, 52, 53, 104])
def test_an_opening_of_long_ago_is_over(days: int, tcp: Conversation) -> None:
    """On a machine that is younger than that, the times wrap."""
    ended = (time.monotonic_ns() - days * 86_400 * SECOND - REVALIDATE - SECOND) % (1 << 60)
    tcp.node.put_flow(TCP_KEY, a_flow(TCP_KEY, ended, ended))
    assert tcp.enter().verdict == KERNEL


def test_words_of_another_flow_open_nothing(tcp: Conversation) -> None:
    """A CPU that was late may write into an entry that is another flow's by now."""
    now = time.monotonic_ns()
    tcp.node.put_flow(TCP_KEY, a_flow(UDP_KEY, now, now))
    assert tcp.enter().verdict == KERNEL
    assert tcp.arrive().verdict == KERNEL


@pytest.mark.parametrize(
    ("program", "frame"),
    [
        ("fl_from_pod", from_pod(dst=OTHER_POD)),
        ("fl_from_pod", from_pod(dst=IPv4Address("203.0.113.5"))),
        ("fl_from_pod", from_pod(src=IPv4Address("203.0.113.5"))),
        ("fl_from_pod", Ether() / ARP()),
        ("fl_from_peer", on_wire(packet(PEER.pod, POD))),
        ("fl_from_peer", vxlan(vni=7)),
    ],
)
def test_only_overlay_packets_get_a_ticket(program: str, frame: Packet, node: Node) -> None:
    assert node.run(program, bytes(frame)).ticket == 0


def test_another_veth_starts_the_flow_anew(udp: Conversation) -> None:
    udp.learn()
    udp.node.forget_pod(POD)
    ran = udp.enter(ifindex=OTHER_PORT)
    assert (ran.reason, ran.verdict) == (Reason.LEARN_NEW, KERNEL)
    udp.leave(ran)
    flow = udp.node.flow(UDP_KEY)
    assert flow is not None
    assert (flow.ifindex, flow.heard) == (OTHER_PORT, 0)


def test_an_impostor_cannot_end_a_flow(tcp: Conversation) -> None:
    tcp.learn()
    assert tcp.enter("R", ifindex=OTHER_PORT).reason == Reason.POD_SOURCE
    assert tcp.enter().verdict == REDIRECT


def test_a_flow_to_a_pod_that_moved_is_learned_again(udp: Conversation) -> None:
    udp.learn_rx()
    udp.node.add_pod(POD, ifindex=OTHER_PORT)
    ran = udp.arrive()
    assert ran.reason == Reason.LEARN_NEW
    udp.deliver(ran, ifindex=OTHER_PORT)
    assert udp.arrive().verdict == REDIRECT


def test_an_open_flow_to_a_forgotten_pod_teaches_it(udp: Conversation) -> None:
    udp.learn_rx()
    udp.node.set_port(POD_PORT, mac=POD_MAC)
    udp.node.forget_pod(POD)
    ran = udp.arrive()
    assert ran.reason in (Reason.LEARN_NEW, Reason.NO_POD)
    udp.deliver(ran)
    assert udp.arrive().verdict == REDIRECT


def test_a_full_table_only_means_the_kernel_path(node: Node) -> None:
    for port in range(1, 2000):
        key = learned.FlowKey(POD, PEER.pod, port, 5000, 17)
        node.maps["fl_flows"].update(key.pack(), a_flow(key, 1).pack())
    talk = Conversation(node, "udp")
    talk.learn_tx()
    assert talk.enter().verdict == REDIRECT


@pytest.mark.parametrize(
    ("flag", "reason"), [(PodFlag.SHAPED, Reason.SHAPED), (PodFlag.GUARDED, Reason.GUARDED)]
)
@pytest.mark.parametrize("known", [True, False])
def test_shaped_and_guarded_pods_never_enter(
    flag: PodFlag, reason: Reason, known: bool, udp: Conversation
) -> None:
    node = udp.node
    node.set_port(POD_PORT, flag, POD_MAC)
    node.forget_pod(POD)
    if known:
        node.add_pod(POD, flags=flag)
    assert udp.enter().reason == reason
    udp.learn_rx()
    assert udp.arrive().reason == reason
    assert udp.enter().reason == reason


def test_other_pods_are_not_concerned(udp: Conversation) -> None:
    udp.learn_tx()
    assert udp.enter().verdict == REDIRECT
    udp.node.add_pod(OTHER_POD, OTHER_PORT, OTHER_MAC)
    other = udp.node.run("fl_from_pod", bytes(from_pod(src=OTHER_POD)), ifindex=OTHER_PORT)
    assert other.reason == Reason.LEARN_NEW


def test_who_is_answered_may_not_ask(node: Node) -> None:
    """The pod answers the peer's pings; its own requests with the same id are another flow."""
    pod_answers = from_pod(l4("pong", sport=4000))
    answer = node.run("fl_from_pod", bytes(pod_answers))
    left = Conversation(node, "ping").leave(answer, body=l4("pong", sport=4000))
    assert left.reason == Reason.LEARN_LEFT
    assert node.run("fl_from_pod", bytes(pod_answers)).verdict == REDIRECT
    assert node.run("fl_from_pod", bytes(from_pod(l4("ping", sport=4000)))).verdict == KERNEL
