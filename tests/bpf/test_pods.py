"""Where pods live: learned from the kernel's deliveries, unlearned by ARP, never guessed from a flood."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from scapy.layers.l2 import ARP, Ether

from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi
from flannel_ebpf.contract.abi import PodFlag, Reason
from tests.bpf.frames import from_pod, l4, packet, vxlan
from tests.bpf.node import (
    GATEWAY_MAC,
    MARK,
    OTHER_MAC,
    OTHER_POD,
    OTHER_PORT,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    REDIRECT,
    VXLAN,
    Node,
)

NodeWith = Callable[[abi.Config], Node]


@pytest.fixture
def node(node_with: NodeWith) -> Node:
    empty = node_with(VXLAN)
    empty.forget_pod(POD)
    return empty


def deliver(
    node: Node, ifindex: int = POD_PORT, *, dst: IPv4Address = POD, mac: Mac = POD_MAC, number: int = 1
) -> None:
    frame = Ether(src=str(GATEWAY_MAC), dst=str(mac)) / packet(PEER.pod, dst, ttl=62, id=number)
    node.run("fl_to_pod", bytes(frame), mark=MARK, ifindex=ifindex)


def arp(node: Node, ifindex: int, mac: Mac, address: IPv4Address = POD, *, op: int = 1) -> None:
    frame = Ether(src=str(mac), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=op, hwsrc=str(mac), psrc=str(address), pdst="10.1.1.1"
    )
    assert node.run("fl_from_pod", bytes(frame), ifindex=ifindex).reason == Reason.NOT_IPV4


def place(node: Node, address: IPv4Address = POD) -> int | None:
    pod = node.pod(address)
    return pod.ifindex if pod else None


def test_a_delivery_teaches_port_macs_and_flags(node: Node) -> None:
    node.set_port(POD_PORT, PodFlag.SHAPED)
    deliver(node)
    pod = node.pod(POD)
    assert pod is not None
    assert (pod.ifindex, pod.mac, pod.gateway_mac, pod.flags) == (
        POD_PORT,
        POD_MAC,
        GATEWAY_MAC,
        PodFlag.SHAPED,
    )


def test_the_first_packet_teaches_and_the_second_is_carried(node: Node) -> None:
    first = node.run("fl_from_peer", bytes(vxlan()))
    assert (first.reason, first.mark) == (Reason.NO_POD, MARK)
    deliver(node)
    assert node.run("fl_from_peer", bytes(vxlan())).verdict == REDIRECT


def test_a_new_flag_is_seen_with_the_next_lesson(node: Node) -> None:
    deliver(node)
    node.set_port(POD_PORT, PodFlag.SHAPED)
    deliver(node, number=2)
    assert node.run("fl_from_peer", bytes(vxlan())).reason == Reason.SHAPED


@pytest.mark.parametrize("address", ["224.0.0.22", "10.1.2.5", "203.0.113.1", "255.255.255.255"])
def test_only_unicast_addresses_of_the_own_subnet_are_pods(address: str, node: Node) -> None:
    deliver(node, dst=IPv4Address(address))
    assert node.maps["fl_pods"].items() == {}


def test_a_reused_address_is_forgotten_when_the_new_pod_speaks(node: Node) -> None:
    deliver(node)
    arp(node, OTHER_PORT, OTHER_MAC)
    assert place(node) is None
    sent = node.run("fl_from_pod", bytes(from_pod()), ifindex=OTHER_PORT)
    assert sent.verdict == REDIRECT, "the new pod is no impostor"


def test_a_reused_address_with_the_same_mac_is_forgotten_too(node: Node) -> None:
    deliver(node)
    arp(node, OTHER_PORT, POD_MAC, op=2)
    assert place(node) is None


def test_a_pods_own_arp_changes_nothing(node: Node) -> None:
    deliver(node)
    arp(node, POD_PORT, POD_MAC)
    arp(node, OTHER_PORT, OTHER_MAC, OTHER_POD)
    assert place(node) == POD_PORT


def test_a_flooded_packet_teaches_nothing(node: Node) -> None:
    deliver(node, OTHER_PORT, number=5)
    deliver(node, POD_PORT, number=5)
    assert place(node) == 0
    assert node.run("fl_from_peer", bytes(vxlan())).reason == Reason.NO_POD
    assert node.run("fl_from_pod", bytes(from_pod())).verdict == REDIRECT, "unknown, but no impostor"


def test_a_flood_of_a_known_pods_packet_makes_its_place_unsure(node: Node) -> None:
    deliver(node, POD_PORT, number=4)
    deliver(node, POD_PORT, number=5)
    deliver(node, OTHER_PORT, number=5)
    assert place(node) == 0


def test_a_flood_to_three_ports(node: Node) -> None:
    for ifindex in (OTHER_PORT, POD_PORT, OTHER_PORT):
        deliver(node, ifindex, number=5)
    assert place(node) == 0


def test_the_next_delivery_settles_the_place(node: Node) -> None:
    deliver(node, OTHER_PORT, number=5)
    deliver(node, POD_PORT, number=5)
    deliver(node, POD_PORT, number=6)
    assert place(node) == POD_PORT


def test_a_delivery_elsewhere_moves_the_pod(node: Node) -> None:
    deliver(node, POD_PORT, number=5)
    deliver(node, OTHER_PORT, mac=OTHER_MAC, number=6)
    pod = node.pod(POD)
    assert pod is not None
    assert (pod.ifindex, pod.mac) == (OTHER_PORT, OTHER_MAC)


def test_learning_keeps_the_frame(node: Node) -> None:
    frame = bytes(Ether(src=str(GATEWAY_MAC), dst=str(POD_MAC)) / packet(PEER.pod, POD, l4("tcp")))
    ran = node.run("fl_to_pod", frame, mark=MARK)
    assert (ran.frame, ran.mark) == (frame, 0)
