"""{relay, BPF} sender x {relay, BPF} receiver in the udp format, across a wire and across veth.

A wire carries finished datagrams: here the uplinks have no offload, so that the kernel finishes what leaves.
Between veths packets stay as a pod's kernel made them, without checksum and uncut: programs pass such packets
to programs, and never to a relay; a relay's batches go to the other relay whole.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.pod import Pod
from flannel_ebpf.relay import counters
from tests.netns import kinds
from tests.netns.kinds import SOME, Kind, Pair, Paths, both
from tests.netns.labs import MakeLab
from tests.netns.life import chat
from tests.netns.traffic import icmp, icmp_error, may_fragment, numbers, receive, send_udp, udp
from tests.netns.udp.peer import sniffer
from tests.polls import eventually

DATAPATHS = {"n1": "ebpf", "n2": "kernel", "n3": "ebpf", "n4": "kernel"}
PAIRS = (("n2", "n4"), ("n2", "n1"), ("n1", "n2"), ("n1", "n3"))
NAMES = {"ebpf": "BPF", "kernel": "relay"}
MTU = 1472
IP_RECVERR = 11


@dataclass(frozen=True)
class Relayed:
    """What a node's relay counted since `before`."""

    node: Node
    before: dict[str, int]

    def __getitem__(self, name: str) -> int:
        return relay_counters(self.node)[name] - self.before[name]


def relay_counters(node: Node) -> dict[str, int]:
    return counters.read(node.state_dir / "relay-flannel0" / "counters")[1]


def relayed(node: Node) -> Relayed:
    return Relayed(node, relay_counters(node))


def hops(pair: Pair) -> Paths:
    """TTL: four hops between pods, however a packet goes; one that ends in a relay ends silently."""
    with udp(pair.client) as source, udp(pair.server) as target, icmp(pair.client) as errors:
        there = (str(pair.server.ip), target.getsockname()[1])
        send_udp(source, there, SOME)
        assert {receive(target)[2] for _ in range(SOME)} == {60}
        with both(pair) as seen:
            send_udp(source, there, 200)
            assert {receive(target)[2] for _ in range(200)} == {60}
        ended = [relayed(pair.sender), relayed(pair.receiver)]
        send_udp(source, there, 1, ttl=2)
        send_udp(source, there, 1, ttl=3)
        eventually(lambda: (ended[0]["tx_ttl"], ended[1]["rx_ttl"]) == (1, 1), "both TTLs end on their relay")
        send_udp(source, there, 1, ttl=1)
        assert icmp_error(errors, 11)[0] == str(pair.sender.gateway.ip)
        send_udp(source, there, 1, ttl=4)
        assert icmp_error(errors, 11)[0] != str(pair.sender.gateway.ip)
        send_udp(source, there, 1, ttl=5)
        assert receive(target)[2] == 1
    return seen


def mtu_edge(pair: Pair) -> Paths:
    """MTU: 1472 bytes go through as one packet, 1473 do not."""
    with udp(pair.client) as source, udp(pair.server) as target:
        source.connect((str(pair.server.ip), target.getsockname()[1]))
        may_fragment(source, False)
        for _ in range(SOME):
            source.send(bytes(MTU - 28))
        assert len(numbers(target, SOME)) == SOME
        with both(pair) as seen:
            for _ in range(200):
                source.send(bytes(MTU - 28))
            for _ in range(200):
                assert len(receive(target)[0]) == MTU - 28
        with pytest.raises(OSError, match="Message too long"):
            source.send(bytes(MTU - 27))
        may_fragment(source, True)
        source.send(bytes(MTU - 27))
        assert len(receive(target)[0]) == MTU - 27
    return seen


def unknown_destination(pair: Pair) -> Paths:
    """No lease: the relay says that the network is unreachable, and the pod's socket hears it."""
    with udp(pair.client) as source, both(pair) as seen:
        source.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        source.connect(("10.1.255.9", 7000))
        refused = relayed(pair.sender)
        source.send(b"anybody there")
        with pytest.raises(OSError, match="Network is unreachable"):
            source.recv(2000)
        eventually(lambda: refused["icmp_unreachable"] == refused["tx_no_route"] == 1, "the relay's refusal")
    return seen


@dataclass(frozen=True)
class Row:
    """A kind of traffic; `wire` and `veth` are the paths at sender and receiver, where they run programs."""

    kind: Kind
    wire: tuple[str, str]
    veth: dict[str, tuple[str, str]]


def everywhere(sender: str, receiver: str) -> dict[str, tuple[str, str]]:
    return dict.fromkeys(("relay-BPF", "BPF-relay", "BPF-BPF"), (sender, receiver))


UNFINISHED = {"relay-BPF": ("", "kernel"), "BPF-relay": ("kernel", ""), "BPF-BPF": ("BPF", "BPF")}
ROWS = {
    "TCP bulk": Row(kinds.long_tcp, ("BPF", "BPF"), {"BPF-BPF": ("BPF", "BPF")}),
    "UDP small": Row(
        kinds.small_udp, ("BPF", "BPF"), {"BPF-relay": ("kernel", ""), "BPF-BPF": ("BPF", "BPF")}
    ),
    "UDP GSO": Row(kinds.udp_gso, ("BPF", "BPF"), {**UNFINISHED, "BPF-BPF": ("kernel", "BPF")}),
    "ICMP": Row(kinds.icmp_echo, ("BPF", "BPF"), everywhere("BPF", "BPF")),
    "hops": Row(hops, ("BPF", "BPF"), {"BPF-relay": ("kernel", ""), "BPF-BPF": ("BPF", "BPF")}),
    "MTU edge": Row(mtu_edge, ("BPF", "BPF"), {"BPF-relay": ("kernel", ""), "BPF-BPF": ("BPF", "BPF")}),
    "fragments": Row(kinds.fragments, ("kernel", "kernel"), everywhere("kernel", "kernel")),
    "no lease": Row(unknown_destination, ("kernel", "kernel"), everywhere("kernel", "kernel")),
}


@pytest.fixture(scope="module")
def labs(make_shared_lab: MakeLab) -> Callable[[str], Lab]:
    made: dict[str, Lab] = {}

    def lab(link: str) -> Lab:
        if link not in made:
            made[link] = make_shared_lab(backend="udp", nodes=4, pods_per_node=1, datapaths=DATAPATHS)
            for name, datapath in DATAPATHS.items():
                if datapath == "ebpf":
                    eventually(
                        partial(settled, made[link].node(name)), f"{name} knows whose programs run", 30
                    )
            if link == "wire":
                kinds.as_on_a_wire(made[link])
        return made[link]

    return lab


def settled(node: Node) -> bool:
    """Whether the node runs programs, and all leases say who else does."""
    announced = [lease for lease in node_leases(node) if lease.get("BackendData")]
    return len(announced) == 2 and "are in use, on the maps of" in node.daemon_log()


def node_leases(node: Node) -> list[dict[str, object]]:
    return list(Lab.open(node.spec.name).leases().values())


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(NAMES[DATAPATHS[name]] for name in pair))
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("link", ["wire", "veth"])
def test_everything_arrives_by_the_path_it_should(
    labs: Callable[[str], Lab], link: str, name: str, pair: tuple[str, str]
) -> None:
    lab, row = labs(link), ROWS[name]
    between = Pair(lab, lab.node(pair[0]), lab.node(pair[1]))
    relays = [relayed(node) for node in (between.sender, between.receiver)]
    seen = row.kind(between)
    if any(counted.any(Reason.LEARN_PEER) > 20 for counted in seen):
        # The outer leg was looked at again just then, which takes as long as a relay does.
        relays = [relayed(node) for node in (between.sender, between.receiver)]
        seen = row.kind(between)
    said = [dict(counted.reasons) for counted in seen]
    ends = "-".join(NAMES[DATAPATHS[one]] for one in pair)
    expected = row.wire if link == "wire" else row.veth.get(ends, ("", ""))
    for node, counted, path, relay in zip(pair, seen, expected, relays, strict=True):
        assert counted.any(Reason.DROP_BROKEN) == counted.any(Reason.GO_ON) == 0
        if DATAPATHS[node] == "kernel":
            assert counted.path == "kernel"
        elif path:
            assert counted.path == path, said
        assert [relay[f"rx_{wrong}"] for wrong in ("oversize", "truncated", "malformed", "error")] == [0] * 4


def test_a_relays_batch_goes_to_the_other_relay_whole(labs: Callable[[str], Lab]) -> None:
    lab = labs("veth")
    pair = Pair(lab, lab.node("n2"), lab.node("n1"))
    relay = relayed(pair.receiver)
    seen = kinds.udp_gso(pair)[1]
    batches = seen.at(Hook.FROM_PEER, Reason.GSO)
    assert batches > 0
    assert relay["rx_delivered"] > 10 * batches
    assert seen.fast == 0


def test_programs_send_no_relay_what_is_not_finished(labs: Callable[[str], Lab]) -> None:
    lab = labs("veth")
    pair = Pair(lab, lab.node("n1"), lab.node("n2"))
    sent = kinds.tcp(pair)[0]
    assert sent.at(Hook.FROM_POD, Reason.GSO) > 0
    assert sent.at(Hook.FROM_POD, Reason.CHECKSUM) > 0
    assert checksum_errors(pair.client) == checksum_errors(pair.server) == 0


def checksum_errors(pod: Pod) -> float:
    words = pod.run(["nstat", "-asz", "TcpInCsumErrors"]).stdout.split()
    return float(words[words.index("TcpInCsumErrors") + 1])


def test_what_programs_leave_to_the_kernel_is_as_good_as_what_they_carry(make_lab: MakeLab) -> None:
    """Unfinished packets for a shaped pod, and at each revalidation: no relay gets to see them."""
    lab = make_lab(
        backend="udp", datapath="ebpf", fastpath="flows", pods_per_node=1, extra_up_args=("--revalidate=1",)
    )
    pair = Pair(lab, lab.node("n1"), lab.node("n2"))
    eventually(lambda: settled(pair.sender), "the programs stand", 30)
    relay = relayed(pair.receiver)
    with chat(pair.client, pair.server):
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            seen = kinds.tcp(pair)[1]
            assert seen.path == "BPF"
    pair.receiver.run(["tc", "qdisc", "add", "dev", pair.server.veth, *TBF.split()])
    eventually(lambda: not fl_to_pod_stands(pair), "fl_to_pod makes way for the shaper")
    assert kinds.tcp(pair)[1].at(Hook.FROM_PEER, Reason.LEARN_NEW) > 100
    assert [relay[f"rx_{wrong}"] for wrong in ("oversize", "truncated", "malformed")] == [0] * 3
    assert checksum_errors(pair.client) == checksum_errors(pair.server) == 0


TBF = "root tbf rate 800mbit burst 32k latency 50ms"


def fl_to_pod_stands(pair: Pair) -> bool:
    found = {(hook.device, hook.program) for hook in pair.receiver.hooks()}
    return (pair.server.veth, "fl_to_pod") in found


def test_a_relays_packets_reach_the_pod_without_the_tunnels_unfinished_checksum(
    labs: Callable[[str], Lab],
) -> None:
    """A pod that routes them on would otherwise have that checksum written into its own packets."""
    lab = labs("veth")
    pair = Pair(lab, lab.node("n2"), lab.node("n1"))
    with closing(sniffer(pair.server.ns, "eth0")) as sock:
        sock.setsockopt(SOL_PACKET, PACKET_AUXDATA, 1)
        sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        seen = kinds.icmp_echo(pair)[1]
        unfinished: list[bool] = []
        while len(unfinished) < 200:
            frame, notes, _, (_, _, kind, *_) = sock.recvmsg(2000, 200)
            if frame[12:14] == b"\x08\x00" and kind == socket.PACKET_HOST:
                status = int.from_bytes(notes[0][2][:4], sys.byteorder)
                unfinished.append(bool(status & TP_STATUS_CSUMNOTREADY))
    assert seen.path == "BPF"
    assert unfinished == [False] * 200


SOL_PACKET, PACKET_AUXDATA, TP_STATUS_CSUMNOTREADY = 263, 8, 8
