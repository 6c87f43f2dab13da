"""The kernel carried this very packet unchanged: what counts as that, and what a changed one voids."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import TCP
from scapy.packet import Packet

from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import HOST
from tests.bpf.conversation import TCP_KEY, UDP_KEY, Conversation, NodeWith, leaving, node, tcp, udp
from tests.bpf.frames import from_pod, l4, packet
from tests.bpf.node import (
    DIRECT,
    FLOWS,
    KERNEL,
    OTHER_POD,
    OTHER_PORT,
    PEER,
    POD,
    POD_PORT,
    REDIRECT,
    SECOND_PEER,
    Node,
)

__all__ = ["node", "tcp", "udp"]

SERVICE = IPv4Address("10.96.0.10")


def shifted(field: str) -> Packet:
    """The segment of a TCP conversation with another number, as SYNPROXY and NAT helpers write it."""
    body = l4("tcp")
    setattr(body[TCP], field, getattr(body[TCP], field) + 1000)
    return body


CHANGED = {
    "source": {"src": HOST},
    "source port": {"body": l4("tcp", sport=4001)},
    "destination port": {"body": l4("tcp", dport=80)},
    "sequence number": {"body": shifted("seq")},
    "acknowledgement": {"body": shifted("ack")},
    "length": {"body": l4("tcp", payload=b"rewritten")},
    "identification": {"id": 77},
    "DSCP": {"tos": 0xB8},
    "TTL": {"ttl": 30},
    "TTL that was not decremented": {"ttl": 64},
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_packet_that_left_changed_opens_nothing(what: str, tcp: Conversation) -> None:
    tcp.learn_rx()
    assert tcp.leave(tcp.enter(), **CHANGED[what]).reason == Reason.LEARN_CHANGED
    assert tcp.enter().verdict == KERNEL


@pytest.mark.parametrize("what", sorted(CHANGED.keys() - {"source port", "destination port"}))
def test_a_packet_that_was_delivered_changed_opens_nothing(what: str, tcp: Conversation) -> None:
    tcp.learn_tx()
    body = CHANGED[what].get("body")
    fields = {**CHANGED[what], "body": body and l4("tcp", sport=5000, dport=4000) / b"more"}
    assert tcp.deliver(tcp.arrive(), **fields).reason == Reason.LEARN_CHANGED
    assert tcp.arrive().verdict == KERNEL


def test_another_next_hop_opens_nothing(node_with: NodeWith) -> None:
    """A route of its own for one pod leads to another node's VTEP, or to another station of the link."""
    for config in (FLOWS, replace(DIRECT, fastpath=FLOWS.fastpath)):
        node = node_with(config)
        node.fill_sketch()
        ran = Conversation(node, "udp").enter()
        frame = leaving(config.backend, packet(POD, PEER.pod, ttl=63), SECOND_PEER.vtep)
        assert node.run("fl_to_peer", frame, ticket=ran.ticket).reason == Reason.LEARN_CHANGED


def test_two_connections_that_share_a_tuple_open_nothing(node: Node) -> None:
    """The pod speaks to a service and its endpoint from one port; the service has the tuple.

    Replies to the service arrive as the direct flow's would, and the kernel translates them; the direct
    flow's replies are delivered as if the tuple were free.
    """
    node.add_peer(SECOND_PEER, SECOND_PEER.peer(FLOWS.backend))
    talk = Conversation(node, "udp")
    for _ in range(2):
        node.fill_sketch()
        of_service = talk.arrive()
        of_direct = node.run("fl_from_peer", of_service.frame)  # arrives with a port that the kernel chose
        assert talk.deliver(of_service, src=SERVICE).reason == Reason.LEARN_CHANGED
        assert of_direct.verdict == KERNEL
        node.fill_sketch()
        left_as = talk.leave(talk.enter(), body=l4(sport=61000))
        assert left_as.reason == Reason.LEARN_CHANGED
    node.fill_sketch()
    assert (talk.enter().verdict, talk.arrive().verdict) == (KERNEL, KERNEL)


@pytest.mark.parametrize("ticket", ["mine", "his"])
def test_a_tuple_that_turns_out_to_be_anothers_is_closed(ticket: str, udp: Conversation) -> None:
    """What entered as something else leaves with the tuple of an open flow, or the other way round."""
    udp.learn()
    assert udp.enter().verdict == REDIRECT
    node = udp.node
    if ticket == "mine":
        stranger = node.run("fl_from_pod", bytes(from_pod(l4(sport=61000))))
        assert udp.leave(stranger).reason == Reason.LEARN_CHANGED
    else:
        node.forget_flow(UDP_KEY)
        node.void_open()
        mine = udp.enter()
        udp.learn_rx()
        assert udp.leave(mine, body=l4(sport=61000)).reason == Reason.LEARN_CHANGED
    assert node.flow(UDP_KEY) is None
    assert (udp.enter().verdict, udp.arrive().verdict) == (KERNEL, KERNEL)


def test_another_pods_packet_cannot_stand_in(udp: Conversation) -> None:
    """It floods the tuple of a pod's flow; the kernel drops that, and carries the pod's own packets."""
    udp.node.forget_pod(POD)
    flood = [udp.enter(ifindex=OTHER_PORT) for _ in range(3)]
    own = udp.enter()
    assert udp.leave(own).reason == Reason.LEARN_LEFT
    flow = udp.node.flow(UDP_KEY)
    assert flow is not None
    assert flow.ifindex == POD_PORT
    assert udp.enter(ifindex=OTHER_PORT).verdict == KERNEL
    assert len({ran.ticket for ran in [*flood, own]}) == 4


def test_a_batch_finds_every_lesson(node: Node) -> None:
    """A device's NAPI puts many packets through before the first reaches its pod."""
    talks = [node.run("fl_from_pod", bytes(from_pod(l4(sport=port)))) for port in range(1000, 1060)]
    for port, ran in zip(range(1000, 1060), talks, strict=True):
        frame = leaving(FLOWS.backend, packet(POD, PEER.pod, l4(sport=port), ttl=63))
        assert node.run("fl_to_peer", frame, ticket=ran.ticket).reason == Reason.LEARN_LEFT


def test_a_packet_that_waited_too_long_teaches_nothing(udp: Conversation) -> None:
    ran = udp.enter()
    for port in range(1000, 1064):
        udp.node.run("fl_from_pod", bytes(from_pod(l4(sport=port))))
    assert udp.leave(ran).reason == Reason.LEARN_LATE


def test_what_a_pods_own_programs_write_is_no_ticket(udp: Conversation) -> None:
    own = udp.enter()
    forged = udp.node.run("fl_from_pod", bytes(from_pod(dst=OTHER_POD)), ticket=own.ticket)
    assert forged.ticket == 0


def test_tickets_are_spent_with_the_packet(tcp: Conversation) -> None:
    tcp.learn()
    assert tcp.enter().ticket == 0
    left = tcp.leave(tcp.enter("S"), "S")
    assert left.ticket in (0, 0x8000), "only what BPF did on the outer leg is left to say"


@pytest.mark.parametrize(
    "ends", [("enter", "leave", "arrive", "deliver"), ("arrive", "deliver", "enter", "leave")]
)
def test_a_handshake_opens_a_connection(ends: tuple[str, str, str, str], tcp: Conversation) -> None:
    """On the client's node, where the SYN leaves, and on the server's, where it arrives."""
    tcp.node.clear_sketch()
    go, went, come, came = (getattr(tcp, name) for name in ends)
    for step, (there, here, flags) in enumerate(((go, went, "S"), (come, came, "SA"), (go, went, "A"))):
        ran = there(flags)
        assert ran.reason == (Reason.LEARN_NEW if flags == "A" else Reason.LEARN_SYN), step
        assert here(ran, flags).reason in (Reason.LEARN_LEFT, Reason.LEARN_DELIVERED)
    assert (tcp.enter().verdict, tcp.arrive().verdict) == (REDIRECT, REDIRECT)


def test_without_the_last_ack_no_handshake_opens(tcp: Conversation) -> None:
    """conntrack would forget the connection after a minute."""
    tcp.node.clear_sketch()
    tcp.learn_tx("S")
    tcp.learn_rx("SA")
    assert (tcp.enter().verdict, tcp.arrive().verdict) == (KERNEL, KERNEL)


def test_a_refused_handshake_opens_nothing(tcp: Conversation) -> None:
    tcp.node.clear_sketch()
    tcp.enter("S")
    tcp.learn_rx("SA")
    tcp.learn_rx("A")
    assert tcp.arrive().verdict == KERNEL


def test_a_connection_on_a_used_tuple_starts_anew(tcp: Conversation) -> None:
    tcp.learn()
    assert tcp.enter().verdict == REDIRECT
    tcp.learn_tx("S")
    flow = tcp.node.flow(TCP_KEY)
    assert flow is not None
    assert (flow.heard, flow.established) == (0, False)


def test_an_ended_connection_keeps_no_entry(tcp: Conversation) -> None:
    tcp.node.clear_sketch()
    for learn, flags in ((tcp.learn_tx, "S"), (tcp.learn_rx, "SA"), (tcp.learn_tx, "A")):
        learn(flags)
    for ran in (tcp.enter("FA"), tcp.arrive("FA"), tcp.enter("A")):
        assert ran.verdict == KERNEL
    assert tcp.node.maps["fl_flows"].items() == {}
