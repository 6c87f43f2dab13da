"""Packets on their way out of a pod: what `fl_from_pod` carries, and what it leaves to the kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

from scapy.layers.inet import ICMP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from flannel_ebpf.contract import enums
from flannel_ebpf.contract.enums import PodFlag, Reason
from tests.bpf.cases import (
    COUNT_ONLY,
    MIXED,
    MULTICAST_MAC,
    NO_CHECK,
    OUTSIDE,
    Case,
    no_pod,
    node_address,
    peer_mode,
    pod_elsewhere,
    shaped_pod,
    silent_daemon,
    tampered,
    unknown_outer_leg,
)
from tests.bpf.frames import from_pod, l4, packet
from tests.bpf.node import (
    DIRECT,
    FLOWS,
    KERNEL,
    OTHER_MAC,
    OTHER_POD,
    OWN_IP,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    STRANGER,
    UDP,
    VXLAN,
    Node,
)

NO_L2_ETH = replace(VXLAN, caps=VXLAN.caps & ~enums.Cap.ENCAP_L2_ETH)
NO_NEIGH = replace(VXLAN, caps=VXLAN.caps & ~enums.Cap.REDIRECT_NEIGH)
IP_AT = 14
OPTIONS = b"\x94\x04\x00\x00"

row = partial(Case, "fl_from_pod")


def peer_mtu(mtu: int) -> Callable[[Node], None]:
    return lambda node: node.add_peer(PEER, PEER.peer(node.config.backend, mtu=mtu))


def peer_has_programs(node: Node) -> None:
    node.add_peer(PEER, replace(PEER.peer(enums.Mode.UDP), flags=enums.PeerFlag.ON_LINK | enums.PeerFlag.BPF))


def shaped_port(node: Node) -> None:
    node.forget_pod(POD)
    node.set_port(POD_PORT, PodFlag.SHAPED)


def guarded_pod(node: Node) -> None:
    node.add_pod(POD, flags=PodFlag.GUARDED)


def without_checksum(kind: str) -> bytes:
    """A frame as a pod's kernel leaves it for the device: only the pseudo header is summed up."""
    frame = bytearray(bytes(from_pod(l4(kind))))
    words = frame[26:34] + bytes((0, frame[23])) + (len(frame) - 34).to_bytes(2, "big")
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    at = 34 + (16 if kind == "tcp" else 6)
    frame[at : at + 2] = (total % 0xFFFF).to_bytes(2, "big")
    return bytes(frame)


FROM_POD = [
    row("UDP to a peer", from_pod(), Reason.FAST_VXLAN),
    row("TCP to a peer", from_pod(l4("tcp")), Reason.FAST_VXLAN),
    row("ping to a peer", from_pod(l4("ping")), Reason.FAST_VXLAN),
    row("echo reply to a peer", from_pod(l4("pong")), Reason.FAST_VXLAN),
    row("from a pod not known yet", from_pod(), Reason.FAST_VXLAN, setup=no_pod),
    row("peer that the kernel was not seen to reach", from_pod(), Reason.LEARN_PEER, setup=unknown_outer_leg),
    row("of a silent daemon", from_pod(), Reason.STAND_ASIDE, setup=silent_daemon),
    row("largest packet", from_pod(l4(payload=bytes(1422))), Reason.FAST_VXLAN),
    row("one byte too large", from_pod(l4(payload=bytes(1423))), Reason.TOO_BIG),
    row("path with a small MTU", from_pod(), Reason.TOO_BIG, setup=peer_mtu(141)),
    row("path just large enough", from_pod(), Reason.FAST_VXLAN, setup=peer_mtu(142)),
    row(
        "super-packet with large segments",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.TOO_BIG,
        skb={"gso_size": 1411, "gso_segs": 3},
    ),
    row(
        "super-packet whose kind the helper refuses",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.GSO,
        skb={"gso_size": 1410, "gso_segs": 3},
    ),
    row(
        "super-packet without ENCAP_L2_ETH",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.GSO,
        config=NO_L2_ETH,
        skb={"gso_size": 1410, "gso_segs": 3},
    ),
    row("kernel without redirect_neigh", from_pod(), Reason.HELPER, config=NO_NEIGH),
    row("ARP", Ether(src=str(POD_MAC)) / ARP(psrc=str(POD)), Reason.NOT_FAMILY),
    row("IPv6", Ether() / IPv6() / l4(), Reason.NOT_FAMILY),
    row("VLAN tag", Ether() / Dot1Q(vlan=5) / packet(POD, PEER.pod), Reason.NOT_FAMILY),
    row("broadcast frame", from_pod(gateway="ff:ff:ff:ff:ff:ff"), Reason.NOT_UNICAST),
    row("multicast frame", from_pod(gateway=MULTICAST_MAC), Reason.NOT_UNICAST),
    row("multicast address", from_pod(dst=IPv4Address("224.0.0.22")), Reason.NOT_UNICAST),
    row("to the next pod", from_pod(dst=OTHER_POD), Reason.NOT_OVERLAY),
    row("to the outside", from_pod(dst=OUTSIDE), Reason.NOT_OVERLAY),
    row("to a subnet nobody holds", from_pod(dst=STRANGER.pod), Reason.NOT_OVERLAY),
    row("to a peer of the kernel's alone", from_pod(), Reason.NOT_OVERLAY, setup=peer_mode(enums.Mode.NONE)),
    row("to a peer of another backend", from_pod(), Reason.NOT_OVERLAY, setup=peer_mode(enums.Mode.UDP)),
    row("IP options", from_pod(options=OPTIONS), Reason.IP_OPTIONS),
    row("first fragment", from_pod(flags="MF"), Reason.FRAGMENT),
    row("later fragment", from_pod(frag=10), Reason.FRAGMENT),
    row("DF", from_pod(flags="DF"), Reason.FAST_VXLAN),
    row("TTL 0", from_pod(ttl=0), Reason.TTL),
    row("TTL 1", from_pod(ttl=1), Reason.TTL),
    row("TTL 2", from_pod(ttl=2), Reason.FAST_VXLAN),
    row("SCTP", from_pod(SCTP()), Reason.PROTOCOL),
    row("ICMP unreachable", from_pod(ICMP(type=3) / Raw(bytes(28))), Reason.FAST_VXLAN),
    row("ICMP unreachable, by flow", from_pod(ICMP(type=3) / Raw(bytes(28))), Reason.PROTOCOL, FLOWS),
    row("version 6 in IPv4", tampered(from_pod(), IP_AT, b"\x65"), Reason.BAD_HEADER),
    row("header length 4", tampered(from_pod(), IP_AT, b"\x44"), Reason.BAD_HEADER),
    row("wrong header checksum", from_pod(chksum=0x1234), Reason.BAD_HEADER),
    row("total length beyond the frame", from_pod(len=200), Reason.BAD_HEADER),
    row("bytes behind the packet", from_pod() / Raw(b"xx"), Reason.FAST_VXLAN),
    row("padding behind the packet", bytes(from_pod()) + b"pad", Reason.BAD_HEADER),
    row("TCP data offset 4", tampered(from_pod(l4("tcp")), 46, b"\x40"), Reason.BAD_HEADER),
    row(
        "TCP header longer than the packet",
        tampered(from_pod(l4("tcp", payload=b"")), 46, b"\xf0"),
        Reason.TRUNCATED,
    ),
    row("half a TCP header", from_pod(Raw(bytes(12)), proto=6), Reason.TRUNCATED),
    row("no L4 header", from_pod(Raw(b""), proto=17), Reason.TRUNCATED),
    row("routed by the pod", from_pod(src=OUTSIDE), Reason.POD_SOURCE),
    row("another pod's address", from_pod(), Reason.POD_SOURCE, setup=pod_elsewhere),
    row("the node's address", from_pod(), Reason.DROP_POD_SOURCE, setup=node_address),
    row(
        "the node's address, counted only",
        from_pod(),
        Reason.DROP_POD_SOURCE,
        config=COUNT_ONLY,
        setup=node_address,
        verdict=KERNEL,
    ),
    row("the node's address, unchecked", from_pod(), Reason.POD_SOURCE, config=NO_CHECK, setup=node_address),
    *(
        row(f"a tunnel packet {what}", from_pod(l4(dport=8472), dst=to, **ip), Reason.DROP_POD_TUNNEL)
        for to in (OWN_IP, PEER.public_ip)
        for what, ip in (
            ("whole", {}),
            ("in pieces", {"flags": "MF"}),
            ("with options", {"options": OPTIONS}),
        )
    ),
    row(
        "a tunnel packet, unchecked",
        from_pod(l4(dport=8472), dst=OWN_IP),
        Reason.NOT_OVERLAY,
        config=NO_CHECK,
    ),
    row(
        "a tunnel packet for no member", from_pod(l4(dport=8472), dst=STRANGER.public_ip), Reason.NOT_OVERLAY
    ),
    row("the tunnel's port by TCP", from_pod(l4("tcp", dport=8472), dst=OWN_IP), Reason.NOT_OVERLAY),
    row("another port of the node", from_pod(l4(dport=53), dst=OWN_IP), Reason.NOT_OVERLAY),
    row("the tunnel's port of a pod", from_pod(l4(dport=8472)), Reason.FAST_VXLAN),
    row("not for the gateway", from_pod(gateway=OTHER_MAC), Reason.NOT_GATEWAY),
    row("shaped pod", from_pod(), Reason.SHAPED, setup=shaped_pod),
    row("guarded pod", from_pod(), Reason.GUARDED, setup=guarded_pod),
    row("shaped port of an unknown pod", from_pod(), Reason.SHAPED, setup=shaped_port),
    row("direct", from_pod(), Reason.FAST_DIRECT, config=DIRECT),
    row(
        "direct needs no room for headers",
        from_pod(l4(payload=bytes(1472))),
        Reason.FAST_DIRECT,
        config=DIRECT,
    ),
    row("direct, too big", from_pod(l4(payload=bytes(1473))), Reason.TOO_BIG, config=DIRECT),
    row(
        "direct peer of a vxlan network",
        from_pod(),
        Reason.FAST_DIRECT,
        config=MIXED,
        setup=peer_mode(enums.Mode.DIRECT),
    ),
    row("udp", from_pod(), Reason.FAST_UDP, config=UDP, taught=True),
    row("udp, TTL 2 is the relay's last", from_pod(ttl=2), Reason.TTL, config=UDP),
    row("udp, TTL 3", from_pod(ttl=3), Reason.FAST_UDP, config=UDP, taught=True),
    row("udp, largest", from_pod(l4(payload=bytes(1444))), Reason.FAST_UDP, config=UDP, taught=True),
    row(
        "udp, super-packet that a relay might get whole",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.GSO,
        config=UDP,
        skb={"gso_size": 1400, "gso_segs": 3},
    ),
    row(
        "udp, UDP super-packet to a peer with programs",
        from_pod(l4("udp", payload=bytes(2800))),
        Reason.GSO,
        config=UDP,
        setup=peer_has_programs,
        skb={"gso_size": 1400, "gso_segs": 2},
    ),
    row("udp, checksum to be done", without_checksum("udp"), Reason.CHECKSUM, config=UDP),
    row("udp, TCP's to be done", without_checksum("tcp"), Reason.CHECKSUM, config=UDP),
    row(
        "udp, checksum to be done, peer with programs",
        without_checksum("tcp"),
        Reason.FAST_UDP,
        config=UDP,
        setup=peer_has_programs,
        taught=True,
    ),
    row(
        "udp, checksum to be done, over hardware",
        without_checksum("udp"),
        Reason.FAST_UDP,
        config=replace(UDP, uplink_finishes=True),
        taught=True,
    ),
    row("udp, too big", from_pod(l4(payload=bytes(1445))), Reason.TOO_BIG, config=UDP),
]
