"""--fastpath=auto: pods that no rule concerns are carried whole, all others by flow."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from scapy.layers.inet import ICMP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Fastpath, PodFlag, Reason
from tests.bpf.cases import OUTSIDE
from tests.bpf.frames import from_pod, l4, packet, vxlan
from tests.bpf.node import (
    FLOWS,
    GATEWAY_MAC,
    HOUR,
    KERNEL,
    OTHER_MAC,
    OTHER_POD,
    OTHER_PORT,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    REDIRECT,
    SECOND_PEER,
    VXLAN,
    Node,
)

NodeWith = Callable[[abi.Config], Node]
AUTO = replace(FLOWS, fastpath=Fastpath.AUTO)
ERROR = ICMP(type=3, code=1) / Raw(bytes(28))


def as_auto(node: Node, *, proved: bool = True) -> Node:
    """POD is stateless, OTHER_POD is not, and no flow is known."""
    node.clear_sketch()
    node.add_pod(POD, flags=PodFlag.STATELESS)
    node.add_pod(OTHER_POD, OTHER_PORT, OTHER_MAC)
    node.set_proof(time.monotonic_ns() + HOUR if proved else 1)
    return node


@pytest.fixture
def auto(node_with: NodeWith) -> Node:
    return as_auto(node_with(AUTO))


@pytest.mark.parametrize("body", [l4("udp"), l4("tcp"), l4("tcp:S"), l4("tcp:FA"), l4("ping"), ERROR])
def test_a_stateless_pod_is_carried_both_ways(body: Packet, auto: Node) -> None:
    assert auto.run("fl_from_pod", bytes(from_pod(body))).verdict == REDIRECT
    assert auto.run("fl_from_peer", bytes(vxlan(packet(PEER.pod, POD, body)))).verdict == REDIRECT
    assert auto.maps["fl_flows"].items() == {}


@pytest.mark.parametrize("body", [l4("udp"), l4("tcp:S"), ERROR])
def test_all_other_pods_are_carried_by_flow(body: Packet, auto: Node) -> None:
    sent = auto.run("fl_from_pod", bytes(from_pod(body, src=OTHER_POD)), ifindex=OTHER_PORT)
    came = auto.run("fl_from_peer", bytes(vxlan(packet(PEER.pod, OTHER_POD, body))))
    assert (sent.verdict, came.verdict) == (KERNEL, KERNEL)


@pytest.mark.parametrize("program", ["fl_from_pod", "fl_from_peer"])
def test_a_proof_that_has_run_out_proves_nothing(program: str, auto: Node) -> None:
    frame = bytes(from_pod() if program == "fl_from_pod" else vxlan())
    auto.set_proof(1)
    assert auto.run(program, frame).verdict == KERNEL


@pytest.mark.parametrize("config", [FLOWS, VXLAN])
def test_only_auto_looks_at_the_flag(config: abi.Config, node_with: NodeWith) -> None:
    node = as_auto(node_with(config))
    expected = REDIRECT if config is VXLAN else KERNEL
    assert node.run("fl_from_pod", bytes(from_pod())).verdict == expected


def test_a_guarded_pod_is_not_stateless(auto: Node) -> None:
    auto.add_pod(POD, flags=PodFlag.STATELESS | PodFlag.GUARDED)
    assert auto.run("fl_from_pod", bytes(from_pod())).reason == Reason.GUARDED
    assert auto.run("fl_from_peer", bytes(vxlan())).reason == Reason.GUARDED


def test_a_stateless_pod_may_not_send_as_another(auto: Node) -> None:
    auto.add_pod(OTHER_POD, OTHER_PORT, OTHER_MAC, flags=PodFlag.STATELESS)
    assert auto.run("fl_from_pod", bytes(from_pod()), ifindex=OTHER_PORT).reason == Reason.POD_SOURCE


@pytest.mark.parametrize("source", [PEER.public_ip, SECOND_PEER.pod, OUTSIDE])
def test_only_pods_of_the_network_speak_to_it_statelessly(source: IPv4Address, auto: Node) -> None:
    """What a node sends from its own address is answered by the kernel."""
    assert auto.run("fl_from_peer", bytes(vxlan(packet(source, POD)))).verdict == KERNEL


def test_a_new_connection_of_a_stateless_pod_needs_the_outer_leg(auto: Node) -> None:
    auto.add_peer(PEER, PEER.peer(AUTO.backend, outer=""))
    assert auto.run("fl_from_pod", bytes(from_pod(l4("tcp:S")))).reason == Reason.LEARN_PEER


@pytest.mark.parametrize(("config", "learned"), [(AUTO, True), (FLOWS, False)])
def test_the_first_packet_tells_where_a_pod_is(
    config: abi.Config, node_with: NodeWith, *, learned: bool
) -> None:
    """A resolver's answers come to a new port each: no flow of such a pod ever grows old."""
    node = as_auto(node_with(config))
    node.forget_pod(POD)
    node.set_port(POD_PORT, mac=POD_MAC)
    node.set_level(IPv4Network(f"{POD}/32"), PodFlag.STATELESS)
    came = node.run("fl_from_peer", bytes(vxlan()))
    assert came.verdict == KERNEL
    frame = Ether(src=str(GATEWAY_MAC), dst=str(POD_MAC)) / packet(PEER.pod, POD, ttl=63)
    node.run("fl_to_pod", bytes(frame), ticket=came.ticket, ifindex=POD_PORT)
    assert (node.pod(POD) is not None) == learned
    assert (node.run("fl_from_peer", bytes(vxlan())).verdict == REDIRECT) == learned
