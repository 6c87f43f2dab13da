"""Odd tunnel packets from a member: a node with programs does with each what a node without them does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from flannel_ebpf.contract.enums import Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from tests.netns.labs import MakeLab
from tests.netns.paths import watch
from tests.netns.traffic import capture, injector

PORTS = (5000, 6000)

Arrived = dict[int, tuple[int, int, int, bytes]]
"""Number of a frame -> TOS, TTL, length and payload of what reached the pod."""


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    """n1 has programs, n2 has none, n3 is whom the frames seem to come from."""
    return make_shared_lab(nodes=3, pods_per_node=1, datapaths={"n1": "ebpf", "n2": "kernel", "n3": "kernel"})


def mac_of(host: Host, device: str) -> str:
    return str(json.loads(host.run(["ip", "-json", "link", "show", "dev", device]).stdout)[0]["address"])


@dataclass(frozen=True)
class Target:
    """A node that gets the frames."""

    lab: Lab
    node: Node
    uplink_mac: str
    vtep_mac: str
    sender_mac: str

    @classmethod
    def of(cls, lab: Lab, name: str) -> Target:
        node, sender = lab.node(name), lab.node("n3")
        macs = (mac_of(node, "eth0"), mac_of(node, "flannel.1"), mac_of(sender, "flannel.1"))
        return cls(lab, node, *macs)

    def frame(self, number: int) -> Packet:
        """A good one."""
        sender = self.lab.node("n3")
        return (
            Ether(src=mac_of(sender, "eth0"), dst=self.uplink_mac)
            / IP(src=str(sender.ip), dst=str(self.node.ip), id=number)
            / UDP(sport=40000, dport=8472, chksum=0)
            / VXLAN(vni=1, flags=8)
            / Ether(src=self.sender_mac, dst=self.vtep_mac)
            / IP(src=str(sender.pods[0].ip), dst=str(self.node.pods[0].ip), id=number)
            / UDP(sport=PORTS[0], dport=PORTS[1])
            / Raw(number.to_bytes(4, "big") + bytes(60))
        )

    def send(self, frames: list[bytes]) -> Arrived:
        """Inject the frames and return what reached the pod of this node."""
        pod = self.node.pods[0]
        with (
            capture(pod.ns, "eth0") as seen,
            injector(self.lab.spec.switch_ns, self.node.name) as inject,
        ):
            for frame in frames:
                inject(Raw(frame))
            packets = [packet[IP] for packet in seen() if UDP in packet and packet[UDP].dport == PORTS[1]]
        found = {}
        for packet in packets:
            payload = bytes(packet[UDP].payload)
            found[int.from_bytes(payload[:4], "big")] = (packet.tos, packet.ttl, packet.len, payload)
        return found


def both(lab: Lab, make: Callable[[Target], list[bytes]]) -> tuple[Arrived, Arrived]:
    """Send what `make` makes to n1, on an admitted flow, and to n2."""
    results = []
    for name in ("n1", "n2"):
        target = Target.of(lab, name)
        warm = [bytes(target.frame(1000 + number)) for number in range(40)]
        assert len(target.send(warm)) == 40
        if name == "n1":
            with watch(target.node) as seen:
                assert len(target.send(warm)) == 40
            assert seen.fast + seen.any(Reason.LEARN_REVALIDATE) == 40, seen
        results.append(target.send(make(target)))
    return results[0], results[1]


def test_ecn_on_arrival_is_the_kernels_in_all_16_cases(lab: Lab) -> None:
    def make(target: Target) -> list[bytes]:
        frames = []
        for number in range(16):
            frame = target.frame(number)
            frame[IP].tos = 0x48 | number >> 2
            frame[VXLAN][IP].tos = 0xB8 | number & 3
            frames.append(bytes(frame))
        return frames

    bpf, kernel = both(lab, make)
    assert bpf == kernel
    assert 3 << 2 not in bpf  # outer CE, inner Not-ECT: dropped
    assert {number: bpf[number][0] & 3 for number in (13, 14, 15)} == {13: 3, 14: 3, 15: 3}


OUTER, OUTER_UDP, TUNNEL, INNER_MAC, INNER, INNER_UDP = range(6)


def layer(frame: Packet, which: int) -> Packet:
    inside = frame[VXLAN]
    layers: tuple[Packet, ...] = (frame[IP], frame[UDP], inside, inside[Ether], inside[IP], inside[UDP])
    return layers[which]


def put(which: int, **values: object) -> Callable[[Packet], bytes]:
    def change(frame: Packet) -> bytes:
        for name, value in values.items():
            setattr(layer(frame, which), name, value)
        return bytes(frame)

    return change


def cut(length: int) -> Callable[[Packet], bytes]:
    return lambda frame: bytes(frame)[:length]


def padded(frame: Packet) -> bytes:
    return bytes(frame) + bytes(20)


def own_vtep_as_source(frame: Packet) -> bytes:
    ethernet = layer(frame, INNER_MAC)
    ethernet.src = ethernet.dst
    return bytes(frame)


def reserved_byte(frame: Packet) -> bytes:
    data = bytearray(bytes(frame))
    data[14 + 20 + 8 + 7] = 1
    return bytes(data)


ODD: dict[str, Callable[[Packet], bytes]] = {
    "nothing": bytes,
    "outer TTL 1": put(OUTER, ttl=1),
    "outer DF": put(OUTER, flags="DF"),
    "outer options": put(OUTER, options=[b"\1\1\1\0"]),
    "outer first fragment": put(OUTER, flags="MF"),
    "outer later fragment": put(OUTER, frag=8),
    "outer checksum": put(OUTER, chksum=0x1234),
    "outer length too long": put(OUTER, len=300),
    "outer padding": padded,
    "UDP length too long": put(OUTER_UDP, len=200),
    "UDP length too short": put(OUTER_UDP, len=80),
    "another port": put(OUTER_UDP, dport=8473),
    "no I flag": put(TUNNEL, flags=0),
    "reserved flag": put(TUNNEL, flags=0x0C),
    "reserved byte": reserved_byte,
    "another VNI": put(TUNNEL, vni=2),
    "inner MAC unknown": put(INNER_MAC, dst="02:00:00:00:00:99"),
    "inner MAC broadcast": put(INNER_MAC, dst="ff:ff:ff:ff:ff:ff"),
    "inner source MAC zero": put(INNER_MAC, src="00:00:00:00:00:00"),
    "inner source MAC multicast": put(INNER_MAC, src="01:00:00:00:00:99"),
    "inner source MAC ours": own_vtep_as_source,
    "inner IPv6": put(INNER_MAC, type=0x86DD),
    "inner VLAN": put(INNER_MAC, type=0x8100),
    "inner version 5": put(INNER, version=5),
    "inner header too short": put(INNER, ihl=4),
    "inner options": put(INNER, options=[b"\1\1\1\0"]),
    "inner checksum": put(INNER, chksum=0x1234),
    "inner length too long": put(INNER, len=300),
    "inner length shorter than the frame": put(INNER, len=60),
    "inner first fragment": put(INNER, flags="MF"),
    "inner later fragment": put(INNER, frag=8),
    "inner DF": put(INNER, flags="DF"),
    "inner TTL 0": put(INNER, ttl=0),
    "inner TTL 1": put(INNER, ttl=1),
    "inner TTL 2": put(INNER, ttl=2),
    "inner SCTP": put(INNER, proto=132),
    "inner source multicast": put(INNER, src="239.1.1.1"),
    "inner source loopback": put(INNER, src="127.0.0.1"),
    "inner source broadcast": put(INNER, src="255.255.255.255"),
    "inner destination multicast": put(INNER, dst="239.1.1.1"),
    "inner UDP checksum": put(INNER_UDP, chksum=0x1234),
    "inner UDP length": put(INNER_UDP, len=300),
    **{
        f"cut at {length}": cut(length)
        for length in (14, 33, 34, 41, 42, 49, 50, 63, 64, 83, 84, 91, 92, 100)
    },
}


def test_odd_packets_fare_as_with_the_kernel(lab: Lab) -> None:
    names = list(ODD)

    def make(target: Target) -> list[bytes]:
        return [change(target.frame(number)) for number, change in enumerate(ODD.values())]

    with watch(lab.node("n1")) as seen:
        bpf, kernel = both(lab, make)
    assert {names[number] for number in bpf} == {names[number] for number in kernel}
    assert bpf == kernel
    assert {"nothing", "inner TTL 2", "outer DF"} <= {names[number] for number in bpf}
    assert "inner TTL 1" not in {names[number] for number in bpf}
    for reason in (Reason.VNI, Reason.VXLAN_HEADER, Reason.INNER_MAC, Reason.OUTER, Reason.BAD_HEADER):
        assert seen.any(reason) > 0, reason.name
    assert seen.any(Reason.DROP_BROKEN) == 0
