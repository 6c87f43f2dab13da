"""Where pods live: learned from the kernel's deliveries, unlearned by ARP, never guessed from a flood."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Network

import pytest
from scapy.layers.l2 import ARP, Ether

from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import PodFlag, Reason
from tests.bpf.frames import from_pod, l4, packet, vxlan
from tests.bpf.node import (
    GATEWAY_MAC,
    OTHER_MAC,
    OTHER_POD,
    OTHER_PORT,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    REDIRECT,
    SUBNET,
    VXLAN,
    Node,
    Ran,
)

NodeWith = Callable[[abi.Config], Node]


@pytest.fixture
def node(node_with: NodeWith) -> Node:
    """Two ports whose pods have spoken, and no pod known."""
    empty = node_with(VXLAN)
    empty.forget_pod(POD)
    empty.set_port(POD_PORT, mac=POD_MAC)
    empty.set_port(OTHER_PORT, mac=OTHER_MAC)
    return empty


def deliver(node: Node, ifindex: int = POD_PORT, *, dst: IPv4Address = POD, mac: Mac = POD_MAC) -> Ran:
    """Have the kernel deliver a packet from the peer there; it came as one for a pod that nobody knew."""
    known = node.pod(POD)
    node.forget_pod(POD)
    ticket = node.run("fl_from_peer", bytes(vxlan())).ticket
    if known:
        node.maps["fl_pods"].update(abi.AddrKey(POD).pack(), known.pack())
    frame = Ether(src=str(GATEWAY_MAC), dst=str(mac)) / packet(PEER.pod, dst, ttl=63)
    return node.run("fl_to_pod", bytes(frame), ticket=ticket, ifindex=ifindex)


def arp(node: Node, ifindex: int, mac: Mac, address: IPv4Address = POD, *, op: int = 1) -> None:
    frame = Ether(src=str(mac), dst="ff:ff:ff:ff:ff:ff") / ARP(
        op=op, hwsrc=str(mac), psrc=str(address), pdst="10.1.1.1"
    )
    assert node.run("fl_from_pod", bytes(frame), ifindex=ifindex).reason == Reason.NOT_FAMILY


def place(node: Node, address: IPv4Address = POD) -> int | None:
    pod = node.pod(address)
    return pod.ifindex if pod else None


def test_a_delivery_teaches_port_macs_and_flags(node: Node) -> None:
    node.set_port(POD_PORT, PodFlag.SHAPED, POD_MAC)
    assert deliver(node).reason == Reason.LEARN_DELIVERED
    assert node.pod(POD) == abi.Pod(POD_PORT, POD_MAC, GATEWAY_MAC, PodFlag.SHAPED)


def test_the_first_packet_teaches_and_the_second_is_carried(node: Node) -> None:
    assert node.run("fl_from_peer", bytes(vxlan())).reason == Reason.NO_POD
    deliver(node)
    assert node.run("fl_from_peer", bytes(vxlan())).verdict == REDIRECT


def test_a_new_pod_has_the_level_of_its_address(node: Node) -> None:
    node.set_level(SUBNET, PodFlag.STATELESS)
    node.set_level(IPv4Network((POD, 32)), PodFlag.GUARDED)
    node.set_port(POD_PORT, PodFlag.SHAPED, POD_MAC)
    deliver(node)
    assert node.pod(POD) == abi.Pod(POD_PORT, POD_MAC, GATEWAY_MAC, PodFlag.SHAPED | PodFlag.GUARDED)


def test_a_pod_that_nobody_knows_has_the_level_of_its_address(node: Node) -> None:
    node.set_level(IPv4Network((POD, 32)), PodFlag.GUARDED)
    assert node.run("fl_from_pod", bytes(from_pod())).reason == Reason.GUARDED


@pytest.mark.parametrize("mac", [abi.NO_MAC, OTHER_MAC])
def test_a_flood_teaches_nothing(mac: Mac, node: Node) -> None:
    """A bridge that does not know a MAC sends its packets to every port; who lives there says so himself."""
    node.set_port(POD_PORT, mac=mac)
    deliver(node)
    assert place(node) is None
    assert node.run("fl_from_peer", bytes(vxlan())).reason == Reason.NO_POD


@pytest.mark.parametrize("body", ["arp", "udp", "tcp:S"])
def test_a_pod_says_its_mac_with_whatever_it_sends(body: str, node: Node) -> None:
    node.set_port(POD_PORT)
    if body == "arp":
        arp(node, POD_PORT, POD_MAC)
    else:
        node.run("fl_from_pod", bytes(from_pod(l4(body))))
    assert node.port(POD_PORT).mac == POD_MAC
    deliver(node)
    assert place(node) == POD_PORT


def test_a_port_that_the_daemon_does_not_know_teaches_nothing(node: Node) -> None:
    node.maps["fl_ports"].delete(abi.pack_u32(POD_PORT))
    deliver(node)
    assert place(node) is None


def test_a_frame_without_a_ticket_teaches_nothing(node: Node) -> None:
    """Pods send to each other over their bridge whatever they like."""
    frame = Ether(src=str(OTHER_MAC), dst=str(POD_MAC)) / packet(OTHER_POD, POD)
    assert node.run("fl_to_pod", bytes(frame)).reason is None
    forged = node.run("fl_to_pod", bytes(frame), ticket=0x7000)
    assert (forged.reason, forged.ticket) == (Reason.LEARN_LATE, 0)
    assert place(node) is None


@pytest.mark.parametrize("address", ["224.0.0.22", "10.1.2.5", "203.0.113.1", "255.255.255.255"])
def test_only_unicast_addresses_of_the_own_subnet_are_pods(address: str, node: Node) -> None:
    deliver(node, dst=IPv4Address(address))
    assert node.maps["fl_pods"].items() == {}


def test_a_reused_address_is_forgotten_when_the_new_pod_speaks(node: Node) -> None:
    deliver(node)
    arp(node, OTHER_PORT, OTHER_MAC)
    assert place(node) is None
    sent = node.run("fl_from_pod", bytes(from_pod()), ifindex=OTHER_PORT)
    assert sent.verdict == REDIRECT, "the new pod may use it"


def test_a_reused_address_with_the_same_mac_is_forgotten_too(node: Node) -> None:
    deliver(node)
    arp(node, OTHER_PORT, POD_MAC, op=2)
    assert place(node) is None


def test_arp_for_the_nodes_own_address_changes_nothing(node: Node) -> None:
    node.add_pod(POD, ifindex=2, flags=PodFlag.NODE)
    arp(node, OTHER_PORT, OTHER_MAC)
    assert place(node) == 2
    assert deliver(node).reason == Reason.LEARN_DELIVERED
    assert place(node) == 2


def test_a_pods_own_arp_changes_nothing(node: Node) -> None:
    deliver(node)
    arp(node, POD_PORT, POD_MAC)
    arp(node, OTHER_PORT, OTHER_MAC, OTHER_POD)
    assert place(node) == POD_PORT


def test_a_delivery_elsewhere_moves_the_pod(node: Node) -> None:
    deliver(node, POD_PORT)
    deliver(node, OTHER_PORT, mac=OTHER_MAC)
    assert node.pod(POD) == abi.Pod(OTHER_PORT, OTHER_MAC, GATEWAY_MAC, PodFlag(0))


def test_learning_keeps_the_frame(node: Node) -> None:
    ran = deliver(node)
    assert (ran.frame[14:], ran.ticket) == (bytes(packet(PEER.pod, POD, ttl=63)), 0)
