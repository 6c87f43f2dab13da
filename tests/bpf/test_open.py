"""fl_open: what was found open in fl_flows is remembered, and no longer or more than it is true."""

from __future__ import annotations

import struct
import time
from dataclasses import replace

import pytest

from flannel_ebpf.contract import learned
from flannel_ebpf.contract.enums import Reason
from tests.bpf.conversation import TCP_KEY, UDP_KEY, Conversation, NodeWith, node, tcp, udp
from tests.bpf.frames import from_pod, l4
from tests.bpf.node import FLOWS, OTHER_MAC, OTHER_PORT, PEER, POD, REDIRECT, Node, a_flow

__all__ = ["node", "tcp", "udp"]

FAST = Reason.FAST_VXLAN
LASTING = 64
"""FL_LASTING of bpf/open.h."""


@pytest.fixture(params=["tcp", "udp"])
def known(request: pytest.FixtureRequest, node: Node) -> Conversation:
    """A connection that fl_open alone knows: fl_flows has lost it."""
    open_here = Conversation(node, request.param)
    open_here.learn()
    let_it_last(open_here)
    assert (open_here.enter().reason, open_here.arrive().reason) == (FAST, FAST)
    node.forget_flow(open_here.key)
    return open_here


def let_it_last(one: Conversation) -> None:
    """Make a connection older than a short one's whole life."""
    flow = one.node.flow(one.key)
    assert flow
    one.node.put_flow(one.key, replace(flow, born=flow.born - LASTING))


def is_fast(one: Conversation) -> tuple[bool, bool]:
    return one.enter().verdict == REDIRECT, one.arrive().verdict == REDIRECT


def test_an_open_flow_needs_no_look_into_the_flow_table(known: Conversation) -> None:
    assert is_fast(known) == (True, True)
    assert known.node.flow(known.key) is None


def test_a_short_connection_takes_no_place(node: Node) -> None:
    one = Conversation(node, "tcp")
    node.clear_sketch()
    one.learn_tx("S")
    one.learn_rx("SA")
    one.learn_tx("A")
    flow = node.flow(TCP_KEY)
    assert flow
    while True:  # however slow the machine is
        before = node.maps["fl_open"].items()
        node.void_open()
        now = time.monotonic_ns()
        node.maps["fl_flows"].update(TCP_KEY.pack(), a_flow(TCP_KEY, now, now, flow.ifindex, born=now).pack())
        assert is_fast(one) == (True, True)
        if node.maps["fl_open"].items() == before:
            break


@pytest.mark.parametrize("flags", ["S", "F", "FA", "R", "RA"])
@pytest.mark.parametrize("side", ["enter", "arrive"])
def test_an_end_in_either_direction_voids_both(tcp: Conversation, side: str, flags: str) -> None:
    tcp.learn()
    let_it_last(tcp)
    assert is_fast(tcp) == (True, True)
    getattr(tcp, side)(flags)
    assert is_fast(tcp) == (False, False)


def test_an_end_voids_what_the_flow_table_has_lost(node: Node) -> None:
    one = Conversation(node, "tcp")
    one.learn()
    let_it_last(one)
    assert is_fast(one) == (True, True)
    node.forget_flow(TCP_KEY)
    one.enter("F")
    assert is_fast(one) == (False, False)


def test_a_pod_at_another_veth_is_not_known(known: Conversation) -> None:
    assert known.enter(ifindex=OTHER_PORT).verdict != REDIRECT
    known.node.add_pod(POD, OTHER_PORT, OTHER_MAC)
    assert known.arrive().verdict != REDIRECT


def test_it_ends_when_the_opening_does(node_with: NodeWith) -> None:
    node = node_with(replace(FLOWS, revalidate_ms=1500))
    node.fill_sketch()
    udp = Conversation(node, "udp")
    udp.learn_tx()
    let_it_last(udp)
    since = time.monotonic()
    assert udp.enter().reason == FAST
    node.forget_flow(UDP_KEY)
    while udp.enter().reason == FAST:
        assert time.monotonic() - since < 20
    assert time.monotonic() - since > 1.4


def test_tcp_ends_when_the_other_direction_is_stale(tcp: Conversation) -> None:
    """Its own direction would be open for a minute more."""
    now = time.monotonic_ns()
    stale_soon = now - 2 * FLOWS.revalidate_ms * 10**6 + 1500 * 10**6
    tcp.node.put_flow(TCP_KEY, a_flow(TCP_KEY, now, stale_soon))
    assert tcp.enter().reason == FAST
    tcp.node.forget_flow(TCP_KEY)
    begun = time.monotonic()
    while tcp.enter().reason == FAST:
        assert time.monotonic() - begun < 20


def test_among_many_flows_only_the_open_ones_are_carried(node_with: NodeWith) -> None:
    """Many share a set of fl_open, and many a cell of the sketch."""
    node = node_with(FLOWS)
    node.fill_sketch()
    now = time.monotonic_ns()
    veth = node.pod(POD)
    assert veth
    for port in range(1024, 1424):
        if port % 2:
            key = learned.FlowKey(POD, PEER.pod, port, 5000, 17)
            node.maps["fl_flows"].update(key.pack(), a_flow(key, now, now, veth.ifindex).pack())
    for _ in range(2):
        for port in range(1024, 1424):
            ran = node.run("fl_from_pod", bytes(from_pod(l4("udp", sport=port, dport=5000))))
            assert (ran.verdict == REDIRECT) == bool(port % 2), port


def test_words_of_two_flows_mixed_by_a_race_open_nothing(known: Conversation) -> None:
    table = known.node.maps["fl_open"]
    mine = known.key.pack()
    mixed = 0
    for index, ways in table.items().items():
        at = ways.find(mine)
        if at >= 0:
            hash_at = at + len(mine)
            [found] = struct.unpack_from("=I", ways, hash_at)
            table.update(index, ways[:hash_at] + struct.pack("=I", found ^ 1) + ways[hash_at + 4 :])
            mixed += 1
    assert mixed == 2, "one of each direction"
    assert is_fast(known) == (False, False)


@pytest.mark.parametrize("days", [0, 1, 26, 27, 40, 52, 53, 104])
def test_what_was_open_long_ago_is_not(days: int, known: Conversation) -> None:
    """On a machine that is younger than that, the times wrap."""
    table = known.node.maps["fl_open"]
    mine = known.key.pack()
    units = (days * 86_400 * 10**9 >> 20) + (FLOWS.revalidate_ms * 10**6 >> 20) + 1
    for index, ways in table.items().items():
        changed = bytearray(ways)
        for at in (0, 32):
            if ways.startswith(mine, at):
                [until] = struct.unpack_from("=Q", ways, at + 24)
                struct.pack_into("=Q", changed, at + 24, until >> 40 << 40 | (until - units) % 2**40)
        if changed != ways:
            table.update(index, bytes(changed))
    assert is_fast(known) == (False, False)
