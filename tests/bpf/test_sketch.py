"""The sketch that keeps young flows away from the flow table, and knows whom it need not look for there."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import HOST
from tests.bpf.conversation import TCP_KEY, Conversation, node, tcp, udp
from tests.bpf.frames import from_pod, l4
from tests.bpf.node import EPOCH_SHIFT, Node, epoch

__all__ = ["node", "tcp", "udp"]

EPOCH = 2**EPOCH_SHIFT


@pytest.fixture(autouse=True)
def early_in_an_epoch() -> None:
    """Counts fade at an epoch's turn: begin with a second to go."""
    left = EPOCH - time.monotonic_ns() % EPOCH
    if left < 10**9:
        time.sleep(left / 1e9)


def test_a_flow_is_young_for_a_dozen_packets_of_a_direction(udp: Conversation) -> None:
    udp.node.clear_sketch()
    for reasons in ([udp.enter().reason for _ in range(13)], [udp.arrive().reason for _ in range(13)]):
        assert reasons == [Reason.LEARN_YOUNG] * 12 + [Reason.LEARN_NEW]


def test_a_quiet_flow_grows_young_again(udp: Conversation) -> None:
    node = udp.node
    node.clear_sketch()
    for _ in range(12):
        udp.enter()
    place, cell = node.counted_cell()
    assert cell.packets == 12
    node.put_cell(place, replace(cell, epoch=cell.epoch - 2 & 0xFF))
    assert udp.enter().reason == Reason.LEARN_YOUNG
    assert node.counted_cell()[1].packets in (2, 4), "12 halved twice, or thrice at an epoch's turn, plus 1"


def test_a_connection_that_opens_here_need_not_grow_old(tcp: Conversation) -> None:
    tcp.node.clear_sketch()
    tcp.learn_tx("S")
    tcp.learn_rx("SA")
    tcp.learn_tx("A")
    assert (tcp.enter().reason, tcp.arrive().reason) == (Reason.FAST_VXLAN, Reason.FAST_VXLAN)


def test_a_neighbours_syn_leaves_an_open_flow_alone(node: Node) -> None:
    """Flows share cells, and a neighbour may open as many connections as it likes."""
    ping = Conversation(node, "ping")
    ping.learn_tx()
    node.clear_sketch(learned=0)
    for port in range(1000, 1200):
        node.run("fl_from_pod", bytes(from_pod(l4("tcp:S", sport=port))))
    assert ping.enter().reason == Reason.FAST_VXLAN


def test_a_translated_flow_tries_with_one_of_a_dozen_packets(udp: Conversation) -> None:
    entered = udp.enter()
    assert udp.leave(entered, src=HOST).reason == Reason.LEARN_CHANGED
    assert [udp.enter().reason for _ in range(13)] == [Reason.LEARN_YOUNG] * 12 + [Reason.LEARN_NEW]


@pytest.mark.parametrize("moving", ["sport", "dport"])
def test_flows_with_neighbouring_ports_are_spread_over_the_sketch(moving: str, node: Node) -> None:
    places = set()
    for turn in range(40):
        node.clear_sketch()
        ports = {"sport": 4000, "dport": 5000}
        ports[moving] += turn
        node.run("fl_from_pod", bytes(from_pod(l4("udp", **ports))))
        places.add(node.counted_cell()[0])
    assert len(places) > 35
    assert len({place % 16 for place in places}) > 8


def test_syn_ends_a_flow_whose_count_has_faded(tcp: Conversation) -> None:
    tcp.learn()
    tcp.node.clear_sketch()
    tcp.enter()
    place, cell = tcp.node.counted_cell()
    tcp.node.put_cell(place, replace(cell, packets=0, learned=epoch() - 2 & 0xFF))
    tcp.enter("S")
    assert tcp.node.flow(TCP_KEY) is None


def test_either_direction_ends_what_only_the_other_has_learned(node: Node) -> None:
    talk = Conversation(node, "tcp")
    for learn, end in (("learn_tx", "arrive"), ("learn_rx", "enter")):
        node.reset()
        node.fill_sketch(learned=100)
        getattr(talk, learn)()
        assert node.flow(TCP_KEY) is not None
        getattr(talk, end)("FA")
        assert node.flow(TCP_KEY) is None
