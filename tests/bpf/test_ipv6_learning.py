"""What programs of IPv6 learn: whose address is whose, and which flows the kernel has carried."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv6Address

import pytest
from scapy.layers.inet import IP
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Reason
from tests.bpf.ipv6 import (
    FLOWS,
    GROUP_MAC,
    OWN,
    PEER,
    POD,
    VXLAN,
    Node6,
    from_pod,
    l4,
    packet,
)
from tests.bpf.node import (
    GATEWAY_MAC,
    KERNEL,
    OTHER_MAC,
    OTHER_PORT,
    POD_MAC,
    POD_PORT,
)

Load = Callable[[abi.Config], Node6]
CLAIMS = {
    "advertised": packet(POD, IPv6Address("ff02::1"), ICMPv6ND_NA(tgt=str(POD)), hlim=255),
    "asked from": packet(POD, IPv6Address("ff02::1:ff00:1"), ICMPv6ND_NS(tgt=str(OWN.pod + 9)), hlim=255),
    "asked whether it is free": packet(
        IPv6Address("::"), IPv6Address("ff02::1:ff00:20"), ICMPv6ND_NS(tgt=str(POD)), hlim=255
    ),
}


@pytest.mark.parametrize("how", CLAIMS)
def test_a_pod_that_claims_anothers_address_ends_its_entry(how: str, node6: Load) -> None:
    node = node6(VXLAN)
    node.set_port(OTHER_PORT)
    frame = bytes(Ether(src=str(OTHER_MAC), dst=GROUP_MAC) / CLAIMS[how])
    assert node.run("fl_from_pod", frame, ifindex=OTHER_PORT).reason == Reason.NOT_UNICAST
    assert node.pod(POD) is None
    assert node.port(OTHER_PORT).mac == OTHER_MAC


@pytest.mark.parametrize("how", CLAIMS)
def test_a_pod_that_says_its_own_address_stays(how: str, node6: Load) -> None:
    node = node6(VXLAN)
    node.set_port(POD_PORT)
    frame = bytes(Ether(src=str(POD_MAC), dst=GROUP_MAC) / CLAIMS[how])
    node.run("fl_from_pod", frame, ifindex=POD_PORT)
    assert node.pod(POD) is not None


@pytest.mark.parametrize(
    "forged",
    [
        packet(POD, IPv6Address("ff02::1"), ICMPv6ND_NA(tgt=str(POD)), hlim=64),
        packet(POD, IPv6Address("ff02::1"), l4("ping"), hlim=255),
    ],
)
def test_what_no_neighbour_says_ends_nothing(forged: Packet, node6: Load) -> None:
    node = node6(VXLAN)
    frame = bytes(Ether(src=str(OTHER_MAC), dst=GROUP_MAC) / forged)
    node.run("fl_from_pod", frame, ifindex=OTHER_PORT)
    assert node.pod(POD) is not None


def test_a_flow_opens_once_the_kernel_has_carried_a_packet_of_it(node6: Load) -> None:
    node = node6(FLOWS)
    node.fill_sketch()
    frame = bytes(from_pod())
    began = node.run("fl_from_pod", frame)
    assert (began.reason, began.verdict) == (Reason.LEARN_NEW, KERNEL)
    left = bytearray(bytes(Ether(src=str(OWN.vtep), dst=str(PEER.vtep)) / packet(POD, PEER.pod, hlim=63)))
    assert node.run("fl_to_peer", bytes(left), ticket=began.ticket).counted[Reason.LEARN_LEFT] == 1
    assert node.run("fl_from_pod", frame).reason == Reason.FAST_VXLAN
    other = bytes(from_pod(l4(sport=4001)))
    assert node.run("fl_from_pod", other).reason == Reason.LEARN_NEW


def test_a_packet_that_the_kernel_changed_opens_nothing(node6: Load) -> None:
    node = node6(FLOWS)
    node.fill_sketch()
    began = node.run("fl_from_pod", bytes(from_pod()))
    translated = Ether(src=str(OWN.vtep), dst=str(PEER.vtep)) / packet(POD, PEER.pod + 1, hlim=63)
    assert node.run("fl_to_peer", bytes(translated), ticket=began.ticket).counted[Reason.LEARN_CHANGED] == 1
    assert node.run("fl_from_pod", bytes(from_pod())).reason != Reason.FAST_VXLAN


def test_the_other_familys_ticket_is_left_alone(node6: Load) -> None:
    """Both families' programs stand on one hook, and each has lessons of its own."""
    node = node6(VXLAN)
    other = bytes(Ether(src=str(GATEWAY_MAC), dst=str(POD_MAC)) / IP() / l4() / Raw(bytes(60)))
    for program in ("fl_from_pod", "fl_to_pod", "fl_to_peer"):
        ran = node.run(program, other, ticket=77, ifindex=0 if "pod" in program else 10)
        assert (program, ran.ticket, ran.verdict) == (program, 77, KERNEL)
