"""A stock udp peer, made of raw sockets in this test, cannot tell a node's programs from its relay."""

from __future__ import annotations

import json
import random
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.pod import Pod
from flannel_ebpf.relay.packet import checksum
from tests.namespaces import inside
from tests.netns.labs import MakeLab
from tests.netns.life import ready, restart
from tests.netns.paths import watch
from tests.netns.udp.peer import frame_where, sniffer, udp_socket

PEER_SUBNET = IPv4Network("10.1.200.0/24")
FAR = "10.1.200.7"
OUTER = 14 + 28
UDP_CHECKSUM = slice(14 + 26, 14 + 28)

Both = dict[str, tuple[list[bytes], list[bytes]]]
"""What the peer and what the pod got, by datapath."""


@dataclass
class Wire:
    """A node under test and the peer's end of the wire."""

    lab: Lab
    node: Node
    pod: Pod

    @property
    def peer(self) -> Node:
        return self.lab.node("n2")

    def leaves(self, packets: list[Packet]) -> list[bytes]:
        """Return the frames that the peer sees when the pod sends these packets."""
        with ExitStack() as stack:
            stack.enter_context(udp_socket(self.peer.ns, str(self.peer.ip), 8285))
            seen = stack.enter_context(sniffer(self.peer.ns, "eth0"))
            with inside(self.pod.ns):
                raw = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW))
            found = []
            for packet in packets:
                raw.sendto(bytes(packet), (FAR, 0))
                tag = bytes(packet)[4:6]
                found.append(frame_where(seen, lambda frame, tag=tag: frame[OUTER + 4 : OUTER + 6] == tag))
            return found

    def arrives(self, packets: list[Packet]) -> list[bytes]:
        """Return the frames that the pod gets when the peer sends these packets."""
        with ExitStack() as stack:
            sock = stack.enter_context(udp_socket(self.peer.ns, str(self.peer.ip), 8285))
            seen = stack.enter_context(sniffer(self.pod.ns, "eth0"))
            found = []
            for packet in packets:
                sock.sendto(bytes(packet), (str(self.node.ip), 8285))
                key = bytes(packet)[4:6] + bytes(packet)[12:20]
                found.append(frame_where(seen, lambda frame, key=key: frame[18:20] + frame[26:34] == key))
            return found


@pytest.fixture(scope="module")
def wire(make_shared_lab: MakeLab) -> Wire:
    """n1 runs a daemon; n2 is a lease in etcd and an address. The wire carries finished packets."""
    lab = make_shared_lab(
        backend="udp", pods_per_node=0, start_daemons=False, extra_up_args=("--fastpath=subnets",)
    )
    node, peer = lab.nodes
    for one in lab.nodes:
        one.run(["ethtool", "-K", "eth0", "tx", "off"])
    lease = {"PublicIP": str(peer.ip), "PublicIPv6": None}
    key = f"{lab.spec.etcd_prefix}/subnets/{str(PEER_SUBNET).replace('/', '-')}"
    lab.etcdctl("put", key, json.dumps(lease))
    node.start_daemon()
    ready(node)
    return Wire(lab, node, node.add_pod())


def switched(wire: Wire, datapath: str) -> Wire:
    restart(wire.node, f"--datapath={datapath}")
    if datapath == "ebpf":
        wire.lab.wait_attached([wire.node])
        wire.node.run(["ping", "-c1", str(wire.pod.ip)])  # the programs learn where the pod is
    return wire


def packets(src: IPv4Address | str, dst: IPv4Address | str) -> list[Packet]:
    """Packets of every kind that programs carry, each with an id of its own and right checksums."""
    choose = random.Random(8285)
    made = []
    for number, size in enumerate([0, 1, 2, 17, 64, 511, 1000, 1400, 1432] * 4):
        header = IP(
            src=str(src),
            dst=str(dst),
            id=0x4000 + number,
            ttl=choose.choice([5, 6, 64, 255]),
            tos=choose.randrange(256) & ~3 | choose.randrange(4),
            flags=choose.choice(["", "DF"]),
        )
        payload = Raw(choose.randbytes(size))
        body = (
            UDP(sport=5000, dport=6000),
            TCP(sport=5000, dport=6000, flags="A", seq=number, ack=7),
            ICMP(type=8, id=77, seq=number),
        )[number % 3]
        made.append(header / body / payload)
    return [IP(bytes(packet)) for packet in made]


@pytest.fixture(scope="module")
def both_ways(wire: Wire) -> Both:
    """Send the same packets through relay and programs; counters prove which of them it was."""
    out, back = packets(wire.pod.ip, FAR), packets(FAR, wire.pod.ip)
    found = {}
    for datapath in ("kernel", "ebpf"):
        switched(wire, datapath)
        for _ in range(2):  # the relay shows the programs both ways, and where the pod is
            wire.leaves(out[:1])
            wire.arrives(back[:1])
        time.sleep(0.35)  # a relay sends alone for as long
        with watch(wire.node) as seen:
            found[datapath] = (wire.leaves(out), wire.arrives(back))
        by_programs = [seen.at(hook, Reason.FAST_UDP) for hook in (Hook.FROM_POD, Hook.FROM_PEER)]
        assert (seen.path == "kernel") == (datapath == "kernel")
        if datapath == "ebpf":  # the pod answers some of it
            assert by_programs[0] >= len(out), dict(seen.reasons)
            assert by_programs[1] == len(back), dict(seen.reasons)
    return found


def comparable(frame: bytes) -> bytes:
    """Return a frame without the outer id and checksums: the relay's socket numbers its datagrams."""
    masked = bytearray(frame)
    masked[18:20] = masked[24:26] = masked[UDP_CHECKSUM] = bytes(2)
    return bytes(masked)


def test_what_leaves_is_equal_byte_for_byte(both_ways: Both) -> None:
    by_relay, by_programs = both_ways["kernel"][0], both_ways["ebpf"][0]
    for relay, programs in zip(by_relay, by_programs, strict=True):
        assert programs[UDP_CHECKSUM] == b"\0\0", "programs send no outer checksum; IPv4 allows that"
        assert comparable(relay).hex() == comparable(programs).hex()
        assert checksum(programs[14:34]) == 0


def test_what_arrives_is_equal_byte_for_byte(both_ways: Both) -> None:
    assert [frame.hex() for frame in both_ways["kernel"][1]] == [
        frame.hex() for frame in both_ways["ebpf"][1]
    ]


def test_the_wire_format_is_flannels(both_ways: Both, wire: Wire) -> None:
    sent = packets(wire.pod.ip, FAR)
    for original, frame in zip(sent, both_ways["ebpf"][0], strict=True):
        outer, expected = IP(frame[14:]), original.copy()
        assert (outer.src, outer.dst, outer.ttl) == (str(wire.node.ip), str(wire.peer.ip), 64)
        assert (outer[UDP].sport, outer[UDP].dport, outer[UDP].len) == (8285, 8285, 8 + len(original))
        expected.ttl -= 2  # the node's routing and its relay are a hop each
        del expected.chksum
        assert bytes(expected) == frame[OUTER:]
