"""Kinds of traffic between two pods: each asserts what arrives and says which path it took."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

from scapy.layers.inet import IP, UDP

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.pod import Pod
from tests.netns.paths import Seen, watch
from tests.netns.traffic import (
    accept_super,
    capture,
    connection,
    icmp,
    icmp_error,
    may_fragment,
    numbers,
    path_mtu,
    ping,
    pump,
    receive,
    send_super,
    send_udp,
    transfer,
    udp,
)
from tests.polls import eventually

SERVICE = ("10.96.0.10", 80)
BULK = 16 << 20
SOME = 60
"""Datagrams enough to have a flow admitted."""


@dataclass(frozen=True)
class Pair:
    """Traffic goes from `client` on node `sender` to `server` on node `receiver`, and back."""

    lab: Lab
    sender: Node
    receiver: Node

    @property
    def client(self) -> Pod:
        return self.sender.pods[0]

    @property
    def server(self) -> Pod:
        return self.receiver.pods[0]


Paths = tuple[Seen, Seen]
"""What the sender's and the receiver's node counted."""

Kind = Callable[[Pair], Paths]


def acquaint(pair: Pair) -> None:
    """Have udp's relays show each other the way: a third of a second later the programs may take it."""
    if pair.lab.spec.backend == "udp":
        ping(pair.client, pair.server.ip, 1)
        time.sleep(0.35)


@contextmanager
def both(pair: Pair) -> Generator[Paths, None, None]:
    acquaint(pair)
    with watch(pair.sender) as sender, watch(pair.receiver) as receiver:
        yield sender, receiver


@contextmanager
def admitted_udp(pair: Pair) -> Generator[tuple[Callable[..., None], Callable[[int], list[int]]], None, None]:
    """Yield what sends datagrams to the server (like `send_udp`) and what receives them, on a warm flow."""
    with udp(pair.client) as source, udp(pair.server) as target:
        there = (str(pair.server.ip), target.getsockname()[1])
        may_fragment(source, True)

        def send(count: int, size: int = 64, **options: int) -> None:
            send_udp(source, there, count, size, **options)

        send(SOME)
        assert len(numbers(target, SOME)) == SOME
        yield send, lambda count: numbers(target, count)


def tcp(pair: Pair) -> Paths:
    """TCP bulk both ways, payload checksums equal at both ends."""
    return tcp_of(pair, BULK)


def long_tcp(pair: Pair) -> Paths:
    """The same, long enough that a slow start through the udp relay is a small part of it."""
    return tcp_of(pair, 6 * BULK)


def tcp_of(pair: Pair, size: int) -> Paths:
    with both(pair) as seen:
        transfer(pair.client, pair.server, size)
    return seen


def small_udp(pair: Pair) -> Paths:
    """UDP of 64 bytes: each once."""
    with admitted_udp(pair) as (send, get), both(pair) as seen:
        send(300)
        assert get(300) == list(range(300))
    return seen


def as_on_a_wire(lab: Lab) -> None:
    """Have a udp lab's uplinks finish what leaves, as wires need it; returns when programs count on that.

    veth would hand a relay, which is a process, whole batches and packets with unfinished inner checksums.
    """
    for node in lab.nodes:
        node.run(["ethtool", "-K", "eth0", "tx", "off", "tx-udp-segmentation", "off"])
    relay = next(node for node in lab.nodes if lab.spec.datapath_of(node.name) == "kernel")
    for node in lab.nodes:
        if lab.spec.datapath_of(node.name) == "ebpf":
            to_relay = Pair(lab, node, relay)
            eventually(
                lambda pair=to_relay: small_udp(pair)[0].path == "BPF", f"{node.name} counts on it", 30
            )  # type: ignore[misc]  # bound now


def sends_whole(pod: Pod) -> bool:
    """Say whether UDP's super-packets leave a pod whole: on 5.10 a veth has them cut before."""
    return "tx-udp-segmentation: on" in pod.run(["ethtool", "-k", "eth0"]).stdout


def udp_gso(pair: Pair) -> Paths:
    """UDP GSO: super-packets of 20 datagrams; where nothing segments them they arrive whole."""
    largest = 0
    with udp(pair.client) as source, udp(pair.server) as target:
        there = (str(pair.server.ip), target.getsockname()[1])
        send_udp(source, there, SOME)
        assert len(numbers(target, SOME)) == SOME
        with both(pair) as seen:
            for number in range(100):
                if number == 50:  # until here the receiver's socket cuts super-packets up itself
                    accept_super(target)
                payload = number.to_bytes(4, "big") * 7000
                send_super(source, there, payload, 1400)
                got = b""
                while len(got) < len(payload):
                    data = target.recv(65536)
                    largest = max(largest, len(data))
                    got += data
                assert got == payload
    if pair.lab.spec.backend != "udp" and sends_whole(pair.client):  # the relay's TUN gives one by one
        assert largest == 28000
    return seen


def icmp_echo(pair: Pair) -> Paths:
    """ICMP echo."""
    with both(pair) as seen:
        assert ping(pair.client, pair.server.ip, 200) == 200
    return seen


@contextmanager
def pod_mtu(pair: Pair, mtu: int) -> Generator[None, None, None]:
    """Give both pods another MTU while the block runs."""

    def set_mtu(node: Node, pod: Pod, mtu: int) -> None:
        node.run(["ip", "link", "set", pod.veth, "mtu", str(mtu)])
        pod.run(["ip", "link", "set", "eth0", "mtu", str(mtu)])
        pod.run(["ip", "route", "flush", "cache"])

    ends = ((pair.sender, pair.client), (pair.receiver, pair.server))
    for node, pod in ends:
        set_mtu(node, pod, mtu)
    try:
        yield
    finally:
        for node, pod in ends:
            set_mtu(node, pod, node.mtu)


def pmtu(pair: Pair) -> Paths:
    """PMTU: pods with a larger MTU than the overlay's learn the path's; TCP copes from the start."""
    mtu = pair.sender.mtu
    with pod_mtu(pair, mtu + 50), both(pair) as seen:
        with udp(pair.client) as source, udp(pair.server) as target:
            source.connect((str(pair.server.ip), target.getsockname()[1]))
            may_fragment(source, False)
            for _ in range(SOME):
                source.send(bytes(64))
            assert len(numbers(target, SOME)) == SOME
            source.send(bytes(mtu + 50 - 28))
            eventually(lambda: path_mtu(source) == mtu, "learning the path MTU")
            assert source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.EMSGSIZE
            source.send(bytes(mtu - 28))
            assert len(target.recv(65536)) == mtu - 28
        for pod in (pair.client, pair.server):
            pod.run(["ip", "route", "flush", "cache"])
        transfer(pair.client, pair.server, BULK)
    return seen


def fragments(pair: Pair) -> Paths:
    """Fragments: datagrams of 4000 bytes."""
    with admitted_udp(pair) as (send, get), both(pair) as seen:
        send(50, 4000)
        assert get(50) == list(range(50))
    return seen


def ecn(pair: Pair) -> Paths:
    """ECN: every codepoint (and a DSCP) arrives as sent, and shows outside as RFC 6040 says."""
    outside = {0: 0, 1: 1, 2: 2, 3: 2}
    with both(pair) as seen, udp(pair.client) as source, udp(pair.server) as target:
        there = (str(pair.server.ip), target.getsockname()[1])
        send_udp(source, there, SOME)
        assert len(numbers(target, SOME)) == SOME
        for codepoint in range(4):
            tos = 0x28 | codepoint
            with capture(pair.lab.spec.switch_ns, pair.sender.name) as frames:
                send_udp(source, there, 30, tos=tos)
                assert {receive(target)[1] for _ in range(30)} == {tos}
                tunnelled = [f[IP] for f in frames() if UDP in f and f[UDP].dport == 8472]
            assert {outer.tos for outer in tunnelled} <= {outside[codepoint]}
    return seen


def ttl(pair: Pair) -> Paths:
    """TTL: 64 arrives as 62; 1 ends at the sender's node and 2 at the receiver's, which say so."""
    spec = pair.lab.spec
    tunnel = spec.backend == "vxlan" and not spec.backend_config.get("DirectRouting")
    far = pair.receiver.subnet[0] if tunnel else pair.receiver.ip
    with udp(pair.client) as source, udp(pair.server) as target, icmp(pair.client) as errors:
        there = (str(pair.server.ip), target.getsockname()[1])
        send_udp(source, there, SOME)
        assert {receive(target)[2] for _ in range(SOME)} == {62}
        with watch(pair.sender) as sender:
            send_udp(source, there, 1, ttl=1)
            assert icmp_error(errors, 11)[0] == str(pair.sender.gateway.ip)
        with watch(pair.receiver) as receiver:
            send_udp(source, there, 1, ttl=2)
            assert icmp_error(errors, 11)[0] == str(far)
    return sender, receiver


@contextmanager
def nat_rule(node: Node, rule: str) -> Generator[None, None, None]:
    """A rule of iptables' nat table while the block runs."""
    node.run(["iptables", "-w", "-t", "nat", "-I", *rule.split()])
    try:
        yield
    finally:
        node.run(["iptables", "-w", "-t", "nat", "-D", *rule.split()])


def dnat(pair: Pair) -> Paths:
    """DNAT: a service address that the client's node turns into the server's pod."""
    address, port = SERVICE
    rule = f"PREROUTING -d {address} -p tcp --dport {port} -j DNAT --to-destination {pair.server.ip}:5001"
    with nat_rule(pair.sender, rule), connection(pair.client, pair.server, SERVICE, 5001) as (near, far):
        assert far.getpeername()[0] == str(pair.client.ip)
        with both(pair) as seen:
            pump(near, far, BULK)
            pump(far, near, BULK)
    return seen


def masquerade(pair: Pair) -> Paths:
    """Masquerade: the client's node puts its own address in place of the pod's."""
    rule = f"POSTROUTING -s {pair.client.ip} -d {pair.server.ip} -j MASQUERADE"
    with nat_rule(pair.sender, rule), connection(pair.client, pair.server) as (near, far):
        assert far.getpeername()[0] != str(pair.client.ip)
        with both(pair) as seen:
            pump(near, far, BULK)
            pump(far, near, BULK)
    return seen
