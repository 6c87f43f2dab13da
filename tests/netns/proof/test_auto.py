"""`--fastpath=auto` in a lab: whole daemons, real rules, real packets."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Hook, PodFlag, Reason
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from tests.netns.diagnose.commands import asked
from tests.netns.kinds import BULK, Pair
from tests.netns.labs import MakeLab
from tests.netns.life import chat, flannel, restart
from tests.netns.paths import watch
from tests.netns.traffic import (
    PATIENCE,
    Stream,
    connection,
    delivered,
    ping,
    pump,
    send_udp,
    tcp_client,
    tcp_server,
    udp,
)
from tests.polls import eventually

VIP, PORT, POD_PORT, NODE_PORT = "10.96.0.10", 80, 8080, 30080
REVALIDATE = 2.0


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    arguments = (f"--revalidate={REVALIDATE}", "--iptables-resync=1")
    return make_shared_lab(datapath="ebpf", fastpath="auto", extra_up_args=arguments)


@pytest.fixture
def pair(lab: Lab) -> Pair:
    """Two nodes of which every pod is free, and known to the programs."""
    for node in lab.nodes:
        node.run(["conntrack", "-F"])  # what rules of before translated would guard for two minutes
        eventually(lambda node=node: vouched(node), f"{node.name} vouches", 30)  # type: ignore[misc]
    n1, n2 = lab.nodes
    for near, far in zip(n1.pods, n2.pods, strict=True):
        eventually(lambda near=near, far=far: ping(near, far.ip, 3) == 3, "an answer")  # type: ignore[misc]
    for node in lab.nodes:
        for pod in node.pods:
            eventually(lambda node=node, pod=pod: is_free(node, pod.ip), f"{pod} is free", 30)  # type: ignore[misc]
    return Pair(lab, n1, n2)


def vouched(node: Node) -> bool:
    with Map.open(node.map_path("fl_proof")) as proof:
        value = proof.lookup(abi.pack_u32(0))
    return value is not None and abi.Proof.unpack(value).until > time.monotonic_ns()


def flags(node: Node, ip: IPv4Address) -> PodFlag | None:
    """What the programs know of a pod, None: nothing."""
    with Map.open(node.map_path("fl_pods")) as pods:
        value = pods.lookup(abi.AddrKey(ip).pack())
    return abi.Pod.unpack(value).flags if value else None


def is_free(node: Node, ip: IPv4Address) -> bool:
    return vouched(node) and flags(node, ip) == PodFlag.STATELESS


def is_guarded(node: Node, ip: IPv4Address) -> bool:
    """By flow, and the proof that says so counts."""
    return vouched(node) and flags(node, ip) == PodFlag(0)


def is_the_kernels(node: Node, ip: IPv4Address) -> bool:
    return flags(node, ip) == PodFlag.GUARDED


@contextmanager
def rules(node: Node, *lines: str, tool: str = "iptables") -> Generator[None, None, None]:
    """Rules ("CHAIN ..." of the filter table or "-t TABLE CHAIN ...") before all others while it runs."""
    made = []
    for line in lines:
        table, rest = line.split()[:2] if line.startswith("-t") else [], line.split()
        chain, *rule = rest[len(table) :]
        made.append([*table, chain, *rule])
        node.run([tool, "-w", *table, "-I", chain, *rule])
    try:
        yield
    finally:
        for *table, chain, rule in [
            (*one[:2], one[2], one[3:]) if one[0] == "-t" else (one[0], one[1:]) for one in made
        ]:
            node.run([tool, "-w", *table, "-D", chain, *rule])


def short_connections(client: Host, server: Host, count: int = 60, to: tuple[str, int] | None = None) -> None:
    """Connect, say one thing, hear one, close; again and again."""
    with tcp_server(server, POD_PORT) as listener:
        for _ in range(count):
            with tcp_client(client, to or (str(server.ip), POD_PORT)) as near, listener.accept()[0] as far:
                far.settimeout(PATIENCE)
                near.sendall(b"question")
                assert far.recv(100) == b"question"
                far.sendall(b"answer")
                assert near.recv(100) == b"answer"


def tracked(node: Node, *what: str) -> int:
    """How many connections conntrack knows, of those that are asked for."""
    return len(node.run(["conntrack", "-L", *what]).stdout.splitlines())


def test_without_rules_every_packet_of_a_connection_is_carried(pair: Pair) -> None:
    for node in pair.lab.nodes:
        node.run(["conntrack", "-F"])
    with watch(pair.sender) as seen, watch(pair.receiver) as there:
        short_connections(pair.client, pair.server)
    assert seen.path == there.path == "BPF", (seen, there)
    for node in pair.lab.nodes:  # the outer leg is looked at anew now and then, by packets of any connection
        assert tracked(node, "-p", "tcp", "-d", str(pair.server.ip)) < 20


def test_status_says_who_is_free_and_why_others_are_not(pair: Pair) -> None:
    assert "addresses: no rule concerns their packets" in flannel(pair.sender, "status")
    with rules(pair.sender, f"FORWARD -s {pair.client.ip} -p tcp --dport 25 -j REJECT"):
        eventually(lambda: is_guarded(pair.sender, pair.client.ip), "the rule guards its pod")
        said = flannel(pair.sender, "status")
    assert f"guarded   {pair.client.ip}, by flow: ip filter FORWARD rule" in said
    assert "reject" in said


def test_what_was_noted_of_a_pod_that_is_free_now_is_said_to_go_by_bpf(pair: Pair) -> None:
    def noted() -> list[tuple[bool, bool]]:
        """Send datagrams that nobody answers, and return how those are said to go both ways."""
        send_udp(sock, (str(pair.server.ip), 9), 20)
        found = asked(pair.sender, "flows", "--proto=udp", "--port=9", f"--pod={pair.client.ip}")
        return [(one["sends_by_bpf"], one["hears_by_bpf"]) for one in found]

    with udp(pair.client) as sock:
        with rules(pair.sender, f"FORWARD -s {pair.client.ip} -p tcp --dport 25 -j REJECT"):
            eventually(lambda: is_guarded(pair.sender, pair.client.ip), "the rule guards its pod")
            eventually(lambda: noted() == [(True, False)], "it sends by BPF and heard nothing", 20)
        eventually(lambda: is_free(pair.sender, pair.client.ip), "the rule is gone")
        assert noted() == [(True, True)]


def test_a_published_port_guards_its_pod_alone(pair: Pair) -> None:
    """The client's packets come by the underlay, and the pod's answers would leave by the overlay."""
    other = pair.receiver.pods[1]
    to = f"{pair.server.ip}:{POD_PORT}"
    publish = f"-t nat PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport {NODE_PORT} -j DNAT --to {to}"
    with rules(pair.receiver, publish):
        eventually(lambda: is_guarded(pair.receiver, pair.server.ip), "the published pod is guarded")
        eventually(lambda: is_free(pair.receiver, other.ip), "the other pod is free")
        short_connections(pair.client, pair.server, 5, to=(str(pair.receiver.ip), NODE_PORT))
        with watch(pair.receiver) as seen:
            short_connections(pair.client, other)
        assert seen.path == "BPF", seen
        short_connections(pair.client, pair.server, 5)


def service(pair: Pair) -> str:
    """A cluster address that this node turns into the server's pod."""
    to = f"{pair.server.ip}:{POD_PORT}"
    return f"-t nat PREROUTING -d {VIP} -p tcp --dport {PORT} -j DNAT --to-destination {to}"


def test_service_addresses_keep_all_pods_by_flow(pair: Pair) -> None:
    with rules(pair.sender, service(pair)):
        for pod in pair.sender.pods:
            eventually(lambda pod=pod: is_guarded(pair.sender, pod.ip), f"{pod} is guarded")  # type: ignore[misc]
        short_connections(pair.client, pair.server, 5, to=(VIP, PORT))
        with connection(pair.client, pair.server) as (near, far), watch(pair.sender) as seen:
            pump(near, far, BULK)
            pump(far, near, BULK)
        assert seen.carried, seen


def test_a_direct_connection_with_the_ports_of_a_translated_one(pair: Pair) -> None:
    """conntrack moves one of them to another port; what one end says only its own other end hears."""
    with rules(pair.sender, service(pair)):
        eventually(lambda: is_guarded(pair.sender, pair.client.ip), "the client is guarded")
        with tcp_server(pair.server, POD_PORT) as listener:
            ends = []
            for to in ((VIP, PORT), (str(pair.server.ip), POD_PORT)):
                near = tcp_client(pair.client, to, port=40_000)
                far = listener.accept()[0]
                far.settimeout(PATIENCE)
                ends.append((near, far))
            assert len({far.getpeername() for _, far in ends}) == 2
            for near, far in ends * 2:
                pump(near, far, BULK // 4)
                pump(far, near, BULK // 4)
            for near, far in ends:
                near.close()
                far.close()


def test_a_rule_that_appears_stops_what_it_is_for_and_nothing_else(pair: Pair) -> None:
    with Stream(pair.client, pair.server) as stream, chat(pair.sender.pods[1], pair.receiver.pods[1]):
        eventually(lambda: len(stream.got) > 300, "the stream")
        for tool in ("iptables", "iptables-legacy"):
            with rules(pair.sender, f"FORWARD -s {pair.client.ip} -p udp -j DROP", tool=tool):
                eventually(stream.silent, "stopping")
                stopped = len(stream.got)
                eventually(lambda: is_guarded(pair.sender, pair.client.ip), "the pod is guarded")
                assert is_free(pair.sender, pair.sender.pods[1].ip)
                assert len(stream.got) == stopped
            eventually(lambda stopped=stopped: len(stream.got) > stopped + 300, "going on")  # type: ignore[misc]
        pair.sender.run(["iptables-legacy", "-X"])


ESTABLISHED = "FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"


def test_running_connections_are_new_to_a_rule_that_asks_for_their_state(pair: Pair) -> None:
    """Whoever may begin a connection goes on with one; a rule that wants to have seen SYN stops it."""
    with connection(pair.client, pair.server) as (near, far):
        pump(near, far, BULK)
        policy = (
            f"FORWARD -s {pair.server.ip} -j DROP",
            f"FORWARD -s {pair.client.ip} -d {pair.server.ip} -m conntrack --ctstate NEW -j ACCEPT",
            ESTABLISHED,
        )
        with rules(pair.sender, *policy):
            eventually(lambda: is_guarded(pair.sender, pair.client.ip), "the client is guarded")
            for _ in range(3):
                pump(near, far, BULK)
                pump(far, near, BULK)
    eventually(lambda: is_free(pair.sender, pair.client.ip), "the client is free")
    with connection(pair.client, pair.server) as (near, far):
        pump(near, far, BULK)
        strict = f"FORWARD -s {pair.client.ip} -p tcp ! --syn -m conntrack --ctstate NEW -j DROP"
        with rules(pair.sender, strict):
            eventually(lambda: is_guarded(pair.sender, pair.client.ip), "the client is guarded")
            near.sendall(b"does not arrive")
            far.settimeout(0.5)
            with pytest.raises(TimeoutError):
                far.recv(100)
        far.settimeout(PATIENCE)
        assert far.recv(100) == b"does not arrive"


def test_what_conntrack_has_not_seen_begin_is_not_dropped_as_invalid(pair: Pair) -> None:
    """A SYN-ACK may be what shows the kernel's outer leg again, and its SYN have come past the kernel.

    One-way datagrams keep the client's leg known, and let the server's be forgotten.
    """
    with (
        rules(pair.receiver, "FORWARD -m conntrack --ctstate INVALID -j DROP"),
        Stream(pair.client, pair.server) as stream,
    ):
        eventually(lambda: is_guarded(pair.receiver, pair.server.ip), "the server is guarded")
        for _ in range(2):
            until = time.monotonic() + 1.5 * REVALIDATE
            eventually(lambda until=until: stream.got and stream.got[-1][0] > until, "quiet")  # type: ignore[misc]
            short_connections(pair.client, pair.server, 3)


@pytest.mark.parametrize("fastpath", ["auto", "flows"])
def test_rules_that_judge_packets_one_by_one_have_all_of_them(pair: Pair, fastpath: str) -> None:
    """A limit lets 5 pass, and what it does not, another rule drops: no packet goes by it."""
    ip = pair.client.ip
    if fastpath != "auto":
        restart(pair.sender, f"--fastpath={fastpath}")
    try:
        limit = (f"FORWARD -s {ip} -j DROP", f"FORWARD -s {ip} -m limit --limit 1/min -j ACCEPT")
        with rules(pair.sender, *limit):
            eventually(lambda: is_the_kernels(pair.sender, ip), "the kernel carries all its packets")
            with watch(pair.sender) as seen:
                assert delivered(pair.client, pair.server, 300) <= 5
            assert seen.at(Hook.FROM_POD, Reason.GUARDED) >= 280
            assert delivered(pair.sender.pods[1], pair.receiver.pods[1]) == 100
    finally:
        if fastpath != "auto":
            restart(pair.sender)


def test_a_dead_daemon_vouches_for_nothing_and_its_successor_does(pair: Pair) -> None:
    pair.sender.kill_daemon()
    eventually(lambda: not vouched(pair.sender), "what it vouched for runs out", REVALIDATE + 10)
    with watch(pair.sender) as seen, connection(pair.client, pair.server) as (near, far):
        pump(near, far, BULK)
        pump(far, near, BULK)
    assert seen.carried, seen  # by flow
    pair.sender.start_daemon()
    eventually(lambda: is_free(pair.sender, pair.client.ip), "the next daemon vouches", 30)
    with watch(pair.sender) as seen:
        short_connections(pair.client, pair.server)
    assert seen.path == "BPF", seen


def test_a_new_pod_has_its_level_from_the_beginning(pair: Pair) -> None:
    node = pair.sender
    with rules(node, f"FORWARD -d {node.subnet[77]} -j DROP"):
        eventually(lambda: is_guarded(node, pair.client.ip) or is_free(node, pair.client.ip), "a proof")
        pods = [node.add_pod(name=f"{node.name}p{last}", ip=node.subnet[last]) for last in (76, 77)]
        try:
            eventually(
                lambda: ping(pods[0], pair.server.ip, 1, patience=1) == 1 and is_free(node, pods[0].ip),
                "the new pod is free",
            )
            assert ping(pods[1], pair.server.ip, 3, patience=1) == 0
            assert flags(node, pods[1].ip) is None  # nothing was ever delivered to it
        finally:
            for pod in pods:
                node.remove_pod(pod)
