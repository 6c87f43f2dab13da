"""Frames before the kernel made a packet of them: what `fl_xdp` drops."""

from __future__ import annotations

from functools import partial

from scapy.layers.inet6 import IPv6
from scapy.packet import Raw

from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import COUNT_ONLY, HOST, OUTSIDE, Case, odd_member, silent_daemon, with_inner_type
from tests.bpf.frames import l4, on_wire, packet, udp_tunnel, vxlan
from tests.bpf.node import DIRECT, OTHER_POD, PEER, POD, STRANGER, UDP, XDP_PASS

row = partial(Case, "fl_xdp")

XDP = [
    row("member's packet", vxlan(), Reason.MEMBER),
    row("member's fragment inside", vxlan(packet(PEER.pod, POD, frag=3)), Reason.MEMBER),
    row("no member", vxlan(sender=STRANGER), Reason.DROP_NOT_MEMBER),
    row("no member, counted", vxlan(sender=STRANGER), Reason.DROP_NOT_MEMBER, COUNT_ONLY, verdict=XDP_PASS),
    row("source that is nobody's", vxlan(packet(OUTSIDE, POD)), Reason.PEER_SOURCE),
    row("our own source", vxlan(packet(OTHER_POD, POD)), Reason.DROP_PEER_SOURCE),
    row("no member, of a silent daemon", vxlan(sender=STRANGER), Reason.STAND_ASIDE, setup=silent_daemon),
    row("subnet of another length", vxlan(sender=STRANGER), Reason.PEER_SOURCE, setup=odd_member),
    row("ARP from no member", with_inner_type(vxlan(sender=STRANGER), 0x0806), Reason.DROP_NOT_MEMBER),
    row("another network", vxlan(vni=2, sender=STRANGER), Reason.VNI),
    row("another port", vxlan(dport=53, sender=STRANGER), Reason.NOT_OVERLAY),
    row("not for us", vxlan(outer_dst=HOST), Reason.NOT_OVERLAY),
    row("outer first fragment", vxlan(flags="MF"), Reason.MEMBER),
    row("outer later fragment", vxlan(frag=5), Reason.OUTER),
    row("short", on_wire(Raw(bytes(19))), Reason.TRUNCATED),
    row("IPv6", on_wire(IPv6() / l4()), Reason.NOT_FAMILY),
    row("plain packet in host-gw", on_wire(packet(PEER.pod, POD)), Reason.NOT_OVERLAY, DIRECT),
    row("udp member", udp_tunnel(), Reason.MEMBER, UDP),
    row("udp no member", udp_tunnel(sender=STRANGER), Reason.DROP_NOT_MEMBER, UDP),
    row("udp source that is nobody's", udp_tunnel(packet(OUTSIDE, POD)), Reason.PEER_SOURCE, UDP),
]
