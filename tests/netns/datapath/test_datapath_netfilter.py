"""NAT and policy stay right while flows take the fast path: nothing in netfilter knows of the programs."""

from __future__ import annotations

import socket
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from tests.netns.kinds import BULK, Pair
from tests.netns.labs import MakeLab
from tests.netns.paths import watch
from tests.netns.traffic import (
    PATIENCE,
    Stream,
    connection,
    delivered,
    numbers,
    ping,
    pump,
    send_udp,
    tcp_client,
    tcp_server,
    udp,
)
from tests.polls import eventually

VIP, PORT, POD_PORT, NODE_PORT = "10.96.0.10", 80, 8080, 30080
REVALIDATE = 0.5


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", extra_up_args=(f"--revalidate={REVALIDATE}", "--ip-masq"))


@pytest.fixture
def pair(lab: Lab) -> Pair:
    return Pair(lab, lab.node("n1"), lab.node("n2"))


@contextmanager
def iptables(nodes: Sequence[Node], *rules: str) -> Generator[None, None, None]:
    """Rules ("-t TABLE CHAIN ...") in front of all others, in this order, while the block runs."""

    def change(action: str, rule: str) -> None:
        option, table, chain, *rest = rule.split()
        for node in nodes:
            node.run(["iptables", "-w", option, table, action, chain, *rest])

    for rule in reversed(rules):
        change("-I", rule)
    try:
        yield
    finally:
        for rule in rules:
            change("-D", rule)


@contextmanager
def nftables(node: Node, *rules: str) -> Generator[None, None, None]:
    """A table of our own with rules at `prerouting` and `postrouting` ("CHAIN rule") while the block runs."""
    chains = {"prerouting": "dstnat", "postrouting": "srcnat"}
    lines = [
        f"chain {name} {{ type nat hook {name} priority {priority};\n"
        + "\n".join(rule.removeprefix(name) for rule in rules if rule.startswith(name))
        + "\n}"
        for name, priority in chains.items()
    ]
    node.run(["nft", "-f", "-"], stdin="table ip service {\n" + "\n".join(lines) + "\n}\n")
    try:
        yield
    finally:
        node.run(["nft", "delete", "table", "ip", "service"])


def service(node: Node, backend: Host, how: str, *, masquerade: bool) -> object:
    """A ClusterIP on `node` with one endpoint; `masquerade` as kube-proxy does it for hairpins."""
    to = f"{backend.ip}:{POD_PORT}"
    if how == "iptables":
        rules = [f"-t nat PREROUTING -d {VIP} -p tcp --dport {PORT} -j DNAT --to-destination {to}"]
        if masquerade:
            rules.append(f"-t nat POSTROUTING -d {backend.ip} -p tcp --dport {POD_PORT} -j MASQUERADE")
        return iptables([node], *rules)
    rules = [f"prerouting ip daddr {VIP} tcp dport {PORT} dnat to {to}"]
    if masquerade:
        rules.append(f"postrouting ip daddr {backend.ip} tcp dport {POD_PORT} masquerade")
    return nftables(node, *rules)


@pytest.mark.parametrize("how", ["iptables", "nftables"])
@pytest.mark.parametrize("endpoint", ["remote", "local", "hairpin"])
def test_a_cluster_address(pair: Pair, how: str, endpoint: str) -> None:
    """The client's node stays out of it; where nothing is translated, at the endpoint's node, BPF carries."""
    client = pair.client
    backend = {"remote": pair.server, "local": pair.sender.pods[1], "hairpin": client}[endpoint]
    rules = service(pair.sender, backend, how, masquerade=endpoint != "remote")
    with rules, connection(client, backend, (VIP, PORT), POD_PORT) as (near, far):  # type: ignore[attr-defined] # either
        assert near.getpeername() == (VIP, PORT)
        with watch(pair.sender) as seen, watch(pair.receiver) as there:
            pump(near, far, BULK)
            pump(far, near, BULK)
    assert seen.fast == 0
    if endpoint == "remote":
        assert far is not None
        assert there.carried, there


@pytest.mark.parametrize("endpoint", ["remote", "local"])
def test_a_node_port_from_outside(pair: Pair, endpoint: str) -> None:
    outside = Host("outside", pair.lab.spec.switch_ns, pair.lab.nodes[0].ip)
    backend = pair.server if endpoint == "remote" else pair.client
    rules = (
        f"-t nat PREROUTING -p tcp --dport {NODE_PORT} -j DNAT --to-destination {backend.ip}:{POD_PORT}",
        f"-t nat POSTROUTING -d {backend.ip} -p tcp --dport {POD_PORT} -j MASQUERADE",
    )
    to = (str(pair.sender.ip), NODE_PORT)
    with (
        iptables([pair.sender], *rules),
        watch(pair.sender) as seen,
        connection(outside, backend, to, POD_PORT) as (near, far),
    ):
        pump(near, far, BULK)
        pump(far, near, BULK)
    assert seen.fast == 0


def test_pods_leave_the_cluster_under_their_nodes_address(pair: Pair) -> None:
    outside = Host("outside", pair.lab.spec.switch_ns, pair.client.ip)
    with tcp_server(outside) as listener:
        to = ("192.168.64.254", listener.getsockname()[1])
        with watch(pair.sender) as seen, tcp_client(pair.client, to) as near, listener.accept()[0] as far:
            far.settimeout(PATIENCE)
            assert far.getpeername()[0] == str(pair.sender.ip)
            pump(near, far, BULK)
            pump(far, near, BULK)
    assert seen.fast == 0
    assert seen.at(Hook.FROM_POD, Reason.NOT_OVERLAY) > 0


@pytest.mark.parametrize("where", ["sender", "receiver"])
def test_a_drop_rule_stops_a_running_flow(pair: Pair, where: str) -> None:
    node = pair.sender if where == "sender" else pair.receiver
    with Stream(pair.client, pair.server) as stream:
        eventually(lambda: len(stream.got) > 300, "the stream")
        with watch(node) as seen:
            before = len(stream.got)
            eventually(lambda: len(stream.got) > before + 300, "the stream")
        assert seen.carried, seen
        with iptables([node], f"-t filter FORWARD -s {pair.client.ip} -d {pair.server.ip} -j DROP"):
            eventually(stream.silent, "stopping")
            stopped = len(stream.got)
            time.sleep(2 * REVALIDATE)  # the rule holds: the next revalidations are dropped too
            assert len(stream.got) == stopped
        eventually(lambda: len(stream.got) > stopped + 300, "going on without the rule")


ESTABLISHED = "-t filter FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT"
INVALID = "-t filter FORWARD -m conntrack --ctstate INVALID -j DROP"


@contextmanager
def client_may_connect(pair: Pair) -> Generator[None, None, None]:
    """On both nodes only the client may begin; conntrack lets the answers through, as policies do."""
    rules = (
        INVALID,
        ESTABLISHED,
        f"-t filter FORWARD -s {pair.client.ip} -d {pair.server.ip} -m conntrack --ctstate NEW -j ACCEPT",
        f"-t filter FORWARD -d {pair.sender.subnet} -j DROP",
        f"-t filter FORWARD -d {pair.receiver.subnet} -j DROP",
    )
    with iptables(pair.lab.nodes, *rules):
        yield


def dropped(node: Node, rule: str) -> int:
    """Packets that the FORWARD rule with this text met."""
    lines = node.run(["iptables", "-w", "-nvxL", "FORWARD"]).stdout.splitlines()
    return sum(int(line.split()[0]) for line in lines if rule in line)


def test_only_established_connections_come_back(pair: Pair) -> None:
    with client_may_connect(pair):
        with connection(pair.client, pair.server) as (near, far):
            with watch(pair.sender) as seen, watch(pair.receiver) as there:
                pump(near, far, BULK)
                pump(far, near, BULK)
            assert seen.carried, seen
            assert there.carried, there
        with tcp_server(pair.client) as listener, pytest.raises(TimeoutError):
            tcp_client(pair.server, (str(pair.client.ip), listener.getsockname()[1]), patience=0.5)


def test_a_connection_lives_over_many_revalidations(pair: Pair) -> None:
    """Conntrack sees one packet in thousands, and finds none of them invalid."""
    with client_may_connect(pair), connection(pair.client, pair.server) as (near, far):
        rounds = 0
        with watch(pair.sender) as seen, watch(pair.receiver) as there:
            end = time.monotonic() + 8 * REVALIDATE
            while time.monotonic() < end or rounds < 3:
                pump(near, far, BULK)
                pump(far, near, BULK)
                rounds += 1
        for node in pair.lab.nodes:
            assert dropped(node, "INVALID") == 0
            assert node.run(["sysctl", "-n", "net.netfilter.nf_conntrack_tcp_be_liberal"]).stdout == "1\n"
    for one in (seen, there):
        assert one.any(Reason.LEARN_REVALIDATE) >= 8
        assert one.carried, one


@pytest.fixture
def short_udp_timeouts(lab: Lab) -> None:
    for node in lab.nodes:
        for name in ("nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"):
            node.run(["sysctl", "-qw", f"net.netfilter.{name}=2"])


def answer(pair: Pair, source: socket.socket, target: socket.socket, count: int) -> tuple[int, int]:
    """Send `count` datagrams each way; return how many arrived at the server and at the client."""
    send_udp(source, (str(pair.server.ip), target.getsockname()[1]), count)
    there = len(numbers(target, count))
    send_udp(target, (str(pair.client.ip), source.getsockname()[1]), count)
    return there, len(numbers(source, count))


def test_udp_that_was_idle_for_longer_than_conntracks_timeout(pair: Pair, short_udp_timeouts: None) -> None:
    """As without programs: the server's word is then a new connection, the client's opens it again."""
    with client_may_connect(pair), udp(pair.client) as source, udp(pair.server) as target:
        assert answer(pair, source, target, 60) == (60, 60)
        time.sleep(3)  # what this is about
        send_udp(target, (str(pair.client.ip), source.getsockname()[1]), 5)
        assert numbers(source, 5, 0.3) == []
        assert answer(pair, source, target, 60) == (60, 60)


def test_busy_udp_keeps_its_conntrack_entry(pair: Pair, short_udp_timeouts: None) -> None:
    with client_may_connect(pair), udp(pair.client) as source, udp(pair.server) as target:
        assert answer(pair, source, target, 60) == (60, 60)
        with watch(pair.sender) as seen:
            end = time.monotonic() + 3
            while time.monotonic() < end:
                assert answer(pair, source, target, 20) == (20, 20)
        assert seen.carried, seen


def test_group_based_policy_keeps_its_marks(make_lab: MakeLab) -> None:
    """GBP carries skb->mark, which netfilter sets, to the other node: its packets stay with the kernel."""
    lab = make_lab(datapath="ebpf", pods_per_node=1, backend_config={"GBP": True})
    pair = Pair(lab, lab.node("n1"), lab.node("n2"))
    mark = f"-t mangle FORWARD -s {pair.client.ip} -j MARK --set-mark 0x17"
    look = f"-t mangle PREROUTING -s {pair.client.ip} -m mark --mark 0x17 -j ACCEPT"
    with iptables([pair.sender], mark), iptables([pair.receiver], look):
        with watch(pair.sender) as seen, udp(pair.client) as source, udp(pair.server) as target:
            send_udp(source, (str(pair.server.ip), target.getsockname()[1]), 100)
            assert len(numbers(target, 100)) == 100
        rules = pair.receiver.run(["iptables", "-w", "-t", "mangle", "-nvxL", "PREROUTING"]).stdout
    assert seen.path == "kernel", seen
    assert [line.split()[0] for line in rules.splitlines() if "0x17" in line] == ["100"]


def test_ipsec_policies_hold(make_lab: MakeLab) -> None:
    """What the kernel must encrypt or stop, BPF does not carry past it: here a policy that stops."""
    lab = make_lab(nodes=3, datapath="ebpf", pods_per_node=1)
    n1, n2, n3 = lab.nodes
    assert ping(n1.pods[0], n2.pods[0].ip, 60) == 60
    n1.run(f"ip xfrm policy add src {n1.ip}/32 dst {n2.ip}/32 proto udp dir out action block".split())
    # Nothing tells the daemon of a policy: its next look does. Until then what BPF carries may be carried on,
    # so a flow of a few packets, which goes the kernel's way, would prove nothing.
    eventually(lambda: delivered(n1.pods[0], n2.pods[0]) == 0, "stopping", 30)
    with watch(n1) as seen:
        assert delivered(n1.pods[0], n2.pods[0]) == 0
    assert seen.fast == 0
    with watch(n1) as other:
        assert ping(n1.pods[0], n3.pods[0].ip, 100) == 100
    assert other.path == "BPF", other
    n1.run(["ip", "xfrm", "policy", "flush"])
    eventually(lambda: ping(n1.pods[0], n2.pods[0].ip, 5, patience=1) == 5, "going on")
