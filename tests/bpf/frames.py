"""Frames as the programs see them, built with scapy."""

from __future__ import annotations

from ipaddress import IPv4Address

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from flannel_ebpf.base.model import Mac
from tests.bpf.node import GATEWAY_MAC, NEXT_HOP_MAC, OWN_IP, OWN_VTEP, PEER, POD, POD_MAC, UPLINK_MAC, Remote

PAYLOAD = bytes(range(64))


def l4(kind: str = "udp", *, sport: int = 4000, dport: int = 5000, payload: bytes = PAYLOAD) -> Packet:
    """Return an L4 header and payload: udp, tcp (or tcp:FLAGS), ping, pong."""
    name, _, flags = kind.partition(":")
    if name == "udp":
        return UDP(sport=sport, dport=dport) / Raw(payload)
    if name == "tcp":
        return TCP(sport=sport, dport=dport, flags=flags or "A", seq=7, ack=9) / Raw(payload)
    return ICMP(type=8 if name == "ping" else 0, id=sport, seq=1) / Raw(payload)


def packet(src: IPv4Address, dst: IPv4Address, body: Packet | None = None, **ip: object) -> Packet:
    return IP(src=str(src), dst=str(dst), **ip) / (body if body is not None else l4())


def from_pod(
    body: Packet | None = None,
    *,
    src: IPv4Address = POD,
    dst: IPv4Address = PEER.pod,
    gateway: Mac | str = GATEWAY_MAC,
    **ip: object,
) -> Packet:
    """Return a frame as a pod sends it to its gateway."""
    return Ether(src=str(POD_MAC), dst=str(gateway)) / packet(src, dst, body, **ip)


def on_wire(payload: Packet, dst: Mac | str = UPLINK_MAC) -> Packet:
    """Return a frame as it reaches the uplink."""
    return Ether(src=str(NEXT_HOP_MAC), dst=str(dst)) / payload


def vxlan(
    inner: Packet | None = None,
    *,
    sender: Remote = PEER,
    outer_dst: IPv4Address = OWN_IP,
    dport: int = 8472,
    vni: int = 1,
    vxlan_flags: int = 0x08,
    inner_dst: Mac | str = OWN_VTEP,
    inner_src: Mac | str | None = None,
    udp: dict[str, int] | None = None,
    **outer: object,
) -> Packet:
    """Return a tunnel packet as `sender` emits it; `inner` defaults to UDP from its pod to ours."""
    inner = packet(sender.pod, POD) if inner is None else inner
    header = UDP(**{"sport": 40000, "dport": dport, "chksum": 0} | (udp or {}))
    ethernet = Ether(src=str(inner_src or sender.vtep), dst=str(inner_dst))
    wrapped = header / VXLAN(vni=vni, flags=vxlan_flags) / ethernet / inner
    return on_wire(IP(src=str(sender.public_ip), dst=str(outer_dst), **outer) / wrapped)


def udp_tunnel(
    inner: Packet | None = None, *, sender: Remote = PEER, checksum: int = 0, **outer: object
) -> Packet:
    """Return a packet of flannel's udp backend."""
    inner = packet(sender.pod, POD) if inner is None else inner
    header = UDP(sport=8285, dport=8285, chksum=checksum)
    return on_wire(IP(src=str(sender.public_ip), dst=str(OWN_IP), **outer) / header / Raw(bytes(inner)))
