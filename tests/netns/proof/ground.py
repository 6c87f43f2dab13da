"""A node with pods, and a peer with pods, whose packets the test sends and takes by hand.

No stack answers: pods and the peer are places where frames are put in and taken out, so that what arrives is
exactly what the node made of what was sent. The node is a real one: bridge, routing, netfilter, vxlan.
"""

from __future__ import annotations

import os
import select
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from flannel_ebpf.desired.proof.passages import Facts, Tunnel
from flannel_ebpf.desired.proof.ranges import Ranges, either, exactly, of, of_network, without
from tests.namespaces import inside, new_namespace
from tests.netns.proof.wire import Step, forwarded, is_same_kind, token_of
from tests.polls import stretch

NETWORK = IPv4Network("10.1.0.0/16")
SUBNET = IPv4Network("10.1.45.0/24")
PEER_SUBNET = IPv4Network("10.1.46.0/24")
PODS = tuple(SUBNET[number] for number in range(2, 6))
REMOTE = tuple(PEER_SUBNET[number] for number in range(2, 5))
NODE_IP, PEER_IP, OUTSIDER = map(IPv4Address, ("192.168.64.1", "192.168.64.2", "192.168.64.9"))
ELSEWHERE = IPv4Address("203.0.113.5")
SERVICE = IPv4Address("10.96.0.10")
PORT = 8472

_GATEWAY_MAC, _NODE_VTEP, _PEER_VTEP, _UPLINK_MAC, _PEER_MAC = (
    f"02:00:00:00:00:{number:02x}" for number in range(1, 6)
)
_IGNORE_OUTGOING = 23  # PACKET_IGNORE_OUTGOING
_SOL_PACKET = 263
_ETH_P_IP = 0x0800
_FRAME = 14


class Place(NamedTuple):
    """Where frames are put in and taken out: a device, its MAC, and the MAC to which its frames go."""

    device: str
    mac: str
    towards: str


@dataclass
class Ground:
    """The namespaces with a socket at each place.

    `node` is the namespace's descriptor, `bridge` the pods' bridge there.
    """

    node: int
    bridge: str
    stack: ExitStack
    sockets: dict[str, socket.socket] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)

    def run(self, *command: str, text: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command on the node."""
        with inside(self.node):
            return subprocess.run(command, input=text, capture_output=True, text=True, check=False)

    def put(self, place: str, packet: bytes) -> None:
        """Send a packet from a place."""
        where = self.places[place]
        head = bytes.fromhex((where.towards + where.mac).replace(":", "")) + _ETH_P_IP.to_bytes(2)
        self.sockets[place].send(head + packet)

    def taken(self, wait: float = 0.0) -> Iterator[tuple[str, bytes]]:
        """Yield (place, packet) of all that has come, waiting for the first at most so long."""
        while True:
            ready, _, _ = select.select(list(self.sockets.values()), [], [], wait)
            if not ready:
                return
            wait = 0.0
            for place, one in self.sockets.items():
                if one in ready:
                    yield place, one.recv(4096)[_FRAME:]

    def arrives(self, sent: Iterable[tuple[Step, str, str]], patience: float = 2.0) -> list[str]:
        """Send packets, each from one place to another; return what did not arrive, or changed, in words.

        `patience`: seconds of an idle machine after which a packet counts as lost.
        """
        wanted = {}
        for step, source, target in sent:
            wanted[step.token] = (target, forwarded(step.packet))
            self.put(source, step.packet)
        wrong = []
        deadline = time.monotonic() + patience * stretch()
        while wanted and time.monotonic() < deadline:
            for place, packet in self.taken(0.05):
                target, expected = wanted.get(token_of(packet), ("", b""))
                if place == target and is_same_kind(packet, expected):
                    del wanted[token_of(packet)]
                    if packet != expected:
                        wrong.append(f"changed on the way: {packet.hex()} instead of {expected.hex()}")
        return wrong + [f"did not arrive at {target}: {packet.hex()}" for target, packet in wanted.values()]

    def facts(self) -> Facts:
        """Return what the proof must know of this node."""
        own = exactly(*(int(one) for one in (SUBNET[0], SUBNET[1], NODE_IP)))
        broadcast = exactly(*(int(one) for one in (SUBNET[-1], IPv4Address("192.168.64.255"))))
        pods, network = of_network(SUBNET), of_network(NETWORK)
        tunnel = Tunnel(exactly(int(NODE_IP)), exactly(int(PEER_IP)), PORT, "eth0")
        kinds: dict[str, Ranges] = {
            "local": either(own, of_network(IPv4Network("127.0.0.0/8"))),
            "broadcast": either(broadcast, of([(0xFFFFFFFF, 0xFFFFFFFF)])),
            "multicast": of_network(IPv4Network("224.0.0.0/4")),
        }
        ports = frozenset(f"veth{number}" for number in range(len(PODS)))
        return Facts(
            4,
            pods,
            without(network, pods),
            frozenset([self.bridge]),
            ports,
            frozenset(["flannel.1"]),
            tunnel,
            kinds,
            invalid_is_nobody=False,
        )


@contextmanager
def ground(bridge: str = "cni0") -> Iterator[Ground]:
    """Make the namespaces; they go with the last socket in them."""
    with ExitStack() as stack:
        node, peer, *pods = (new_namespace() for _ in range(2 + len(PODS)))
        for one in (node, peer, *pods):
            stack.callback(os.close, one)
        made = Ground(node, bridge, stack)
        with inside(node):
            _configure(_node(bridge, peer, pods))
        with inside(peer):
            _configure(_peer())
            made.sockets["peer"] = stack.enter_context(_listen("flannel.1"))
            made.sockets["outside"] = stack.enter_context(_listen("eth0"))
        made.places["peer"] = Place("flannel.1", _PEER_VTEP, _NODE_VTEP)
        made.places["outside"] = Place("eth0", _PEER_MAC, _UPLINK_MAC)
        for number, one in enumerate(pods):
            with inside(one):
                made.sockets[f"pod{number}"] = stack.enter_context(_listen("eth0"))
            made.places[f"pod{number}"] = Place("eth0", _pod_mac(number), _GATEWAY_MAC)
        yield made


def place_of(address: IPv4Address) -> str:
    """Return where a pod's packets are put in and taken out."""
    return f"pod{PODS.index(address)}" if address in PODS else "peer"


def _pod_mac(number: int) -> str:
    return f"02:00:00:00:01:{number:02x}"


def _listen(device: str) -> socket.socket:
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
    found.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    found.bind((device, _ETH_P_IP))
    return found


def _configure(lines: Iterable[str]) -> None:
    for path in ("net/ipv6/conf/default/disable_ipv6", "net/ipv6/conf/all/disable_ipv6"):
        with open(f"/proc/sys/{path}", "w") as file:
            file.write("1")
    for line in lines:
        subprocess.run(line.split(), check=True)


def _node(bridge: str, peer: int, pods: list[int]) -> Iterator[str]:
    def at(namespace: int) -> str:
        return f"/proc/{os.getpid()}/fd/{namespace}"

    yield "ip link set lo up"
    yield f"ip link add {bridge} address {_GATEWAY_MAC} type bridge"
    other = f"peer name eth0 address {_PEER_MAC} netns {at(peer)}"
    yield f"ip link add eth0 address {_UPLINK_MAC} type veth {other}"
    yield f"ip address add {NODE_IP}/24 dev eth0"
    for number, pod in enumerate(pods):
        yield f"ip link add veth{number} type veth peer name eth0 address {_pod_mac(number)} netns {at(pod)}"
        yield f"ip link set veth{number} master {bridge} up"
        yield f"nsenter --net={at(pod)} ip link set eth0 up"
    yield f"ip address add {SUBNET[1]}/24 dev {bridge}"
    yield f"ip link set {bridge} up"
    yield "ip link set eth0 up"
    yield from _vxlan(NODE_IP, _NODE_VTEP, _PEER_VTEP, PEER_IP)
    yield f"ip address add {SUBNET[0]}/32 dev flannel.1"
    yield f"ip route add {PEER_SUBNET} via {PEER_SUBNET[0]} dev flannel.1 onlink"
    yield f"ip neigh add {PEER_SUBNET[0]} lladdr {_PEER_VTEP} dev flannel.1"
    for number, address in enumerate(PODS):
        yield f"ip neigh add {address} lladdr {_pod_mac(number)} dev {bridge}"
        yield f"bridge fdb replace {_pod_mac(number)} dev veth{number} master static"
    for address in (PEER_IP, OUTSIDER):
        yield f"ip neigh add {address} lladdr {_PEER_MAC} dev eth0"
    yield f"ip route add default via {OUTSIDER}"
    yield "sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0"
    yield "sysctl -qw net.ipv4.conf.all.send_redirects=0 net.ipv4.icmp_ratelimit=0"


def _peer() -> Iterator[str]:
    yield "ip link set eth0 up"
    yield f"ip address add {PEER_IP}/24 dev eth0"
    yield f"ip neigh add {NODE_IP} lladdr {_UPLINK_MAC} dev eth0"
    yield from _vxlan(PEER_IP, _PEER_VTEP, _NODE_VTEP, NODE_IP)
    yield "sysctl -qw net.ipv4.ip_forward=0 net.ipv4.conf.all.rp_filter=0"


def _vxlan(local: IPv4Address, mac: str, other: str, remote: IPv4Address) -> Iterator[str]:
    tunnel = f"id 1 local {local} dev eth0 dstport {PORT} nolearning"
    yield f"ip link add flannel.1 address {mac} type vxlan {tunnel}"
    yield "ip link set flannel.1 up"
    yield f"bridge fdb add {other} dev flannel.1 dst {remote} self"
