"""The daemon's proof in a real namespace: who is free, who vouches, and who hears of a change first."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from flannel_ebpf.agent.prover import Prover
from flannel_ebpf.agent.side import Round
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import Mac, Uplink
from flannel_ebpf.base.options import Options
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends import Node, Peer
from flannel_ebpf.desired.proof.proof import Level, Proof
from flannel_ebpf.kernel.firewall.monitor import RulesMonitor
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.pods import pod_ports
from flannel_ebpf.kernel.seen import Seen
from tests.namespaces import inside
from tests.netns.proof.ground import NODE_IP, OUTSIDER, PEER_IP, PEER_SUBNET, PODS, REMOTE, SUBNET, ground
from tests.netns.proof.judge import is_in
from tests.polls import eventually
from tests.samples import stack

CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
MAC = Mac.parse("02:00:00:00:00:04")
PEER = Peer(PEER_SUBNET, PEER_IP, Mode.VXLAN, 1500, True, MAC)


@dataclass
class Tried:
    """A prover in a node's namespace, and all that it said."""

    prover: Prover
    netlink: RouteSocket
    said: list[float] = field(default_factory=list)
    wakes: list[float] = field(default_factory=list)

    def prove(self) -> Proof:
        seen = Seen(self.netlink)
        uplink = Uplink(seen.index_of("eth0"), "eth0", NODE_IP, 24, 1500, MAC)
        ours = stack(CONFIG, uplink, SUBNET, MAC)
        now = Round(Node((ours,)), (PEER,), pod_ports(seen, (SUBNET,)), seen)
        return self.prover.prove(ours, (PEER,), now)

    def free(self) -> list[bool]:
        return [is_in(self.prove().free, pod) for pod in PODS]

    def settle(self) -> None:
        self.prove()
        self.prover.settle()

    @property
    def vouched(self) -> bool:
        return bool(self.said) and self.said[-1] > time.monotonic()

    @property
    def taken_back(self) -> bool:
        return self.said[-1] == 0.0


def trying(*, stateless: bool) -> Iterator[Tried]:
    options = Options(revalidate=2.0, iptables_resync=1)
    said: list[float] = []
    wakes: list[float] = []
    with ground() as made, inside(made.node), RouteSocket() as netlink:
        prover = Prover(options, said.append, lambda: wakes.append(time.monotonic()), stateless=stateless)
        with prover, RulesMonitor(lambda: None, prover.touched):
            yield Tried(prover, netlink, said, wakes)


@pytest.fixture
def auto() -> Iterator[Tried]:
    yield from trying(stateless=True)


@pytest.fixture
def flows() -> Iterator[Tried]:
    yield from trying(stateless=False)


def run(*commands: str, text: str = "") -> None:
    for command in commands:
        done = subprocess.run(command.split(), input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


def nft(text: str) -> None:
    run("nft -f -", text=text)


FORWARD = "table ip t { chain c { type filter hook forward priority 0; RULE; }; }"


def test_without_rules_all_pods_are_free_and_vouched_for(auto: Tried) -> None:
    assert auto.free() == [True] * 4
    assert not auto.vouched
    auto.settle()
    assert auto.vouched
    before = len(auto.said)
    eventually(lambda: len(auto.said) > before + 2, "it is vouched for again and again")
    assert all(until > time.monotonic() - 2 for until in auto.said[before:])


def test_a_new_rule_guards_at_once_and_its_removal_frees(auto: Tried) -> None:
    auto.settle()
    nft(FORWARD.replace("RULE", f"ip saddr {PODS[0]} drop"))
    eventually(lambda: auto.taken_back, "nobody vouches any more")
    eventually(lambda: auto.wakes, "a pass is asked for")
    assert auto.free() == [False, True, True, True]
    auto.prover.settle()
    assert auto.vouched
    run("nft flush ruleset")
    eventually(lambda: auto.taken_back, "nobody vouches any more")
    assert auto.free() == [True] * 4


def test_nobody_vouches_for_a_proof_that_a_change_has_overtaken(auto: Tried) -> None:
    auto.prove()
    nft(FORWARD.replace("RULE", "ip saddr 192.0.2.1 drop"))
    eventually(lambda: auto.said, "the change is heard of")
    auto.prover.settle()
    assert auto.taken_back
    auto.settle()
    assert auto.vouched


def test_what_no_packet_of_ours_meets_is_no_change(auto: Tried) -> None:
    nft("table ip t { chain c { type filter hook forward priority 0; iif lo jump u; }; chain u { }; }")
    auto.settle()
    before = len(auto.wakes)
    run("nft add rule ip t u drop", "nft add chain ip t other", "nft add rule ip t other drop")
    run("nft add table arp a", "nft add set ip t s { type ipv4_addr ; }")
    nft(FORWARD.replace("RULE", "counter").replace("t {", "last {"))  # whoever hears of this heard of all
    eventually(lambda: len(auto.wakes) > before, "the last change is heard of")
    assert len(auto.wakes) == before + 1
    assert auto.free() == [True] * 4


@pytest.mark.parametrize(
    "change",
    [
        f"nft add element ip t s {{ {PODS[0]} }}",
        f"nft add rule ip t u ip saddr {PODS[0]} reject",
        f"nft insert rule ip t c ip daddr {PODS[0]} drop",
        "nft add chain ip t c { policy drop ; }",
        f"iptables-nft -t raw -A PREROUTING -s {PODS[0]} -j CT --notrack",
        f"iptables-nft -t nat -A PREROUTING -d 192.0.2.1 -j DNAT --to-destination {PODS[0]}",
    ],
)
def test_whatever_guards_is_heard_of(auto: Tried, change: str) -> None:
    nft(
        """table ip t {
            set s { type ipv4_addr; elements = { 192.0.2.1 }; }
            chain u { }
            chain c { type filter hook forward priority 0; ip saddr @s drop; jump u; }
        }"""
    )
    auto.settle()
    assert auto.prover.proof.free
    run(change)
    eventually(lambda: auto.taken_back, "nobody vouches any more")
    assert not auto.free()[0]


def test_legacy_rules_guard_within_the_resync_interval(auto: Tried) -> None:
    run("iptables-legacy -N OTHER")
    auto.settle()
    eventually(lambda: auto.vouched, "it is vouched for")
    run(f"iptables-legacy -A FORWARD -s {PODS[1]} -j DROP")
    eventually(lambda: auto.taken_back, "nobody vouches any more")
    assert auto.free() == [True, False, True, True]
    auto.prover.settle()
    assert auto.vouched
    run("iptables-legacy -F")


def test_packets_that_legacy_rules_count_are_no_change(auto: Tried) -> None:
    run("iptables-legacy -A OUTPUT -d 127.0.0.1")
    auto.settle()
    taken_back = auto.said.count(0.0)
    run("ping -c 3 -i 0.2 127.0.0.1")
    before = len(auto.said)
    eventually(lambda: len(auto.said) > before + 4, "it is vouched for again and again")
    assert auto.said.count(0.0) == taken_back
    run("iptables-legacy -F OUTPUT")


BESIDE = {
    "sysctl -qw net.ipv4.conf.cni0.forwarding=0": "net.ipv4.conf.cni0.forwarding is 0",
    "ip rule add from 10.1.45.3 unreachable": "leads pods' packets to no table",
    "ip rule add iif cni0 lookup 77": "leads pods' packets to table 77",
    f"ip route add {REMOTE[0]} via {OUTSIDER}": f"a route to {REMOTE[0]}/32 lies inside a peer's subnet",
    f"ip route add {PEER_SUBNET} tos 4 via {OUTSIDER}": f"a route to {PEER_SUBNET} is for some packets only",
    "tc qdisc add dev cni0 root tbf rate 1mbit burst 9kb latency 9ms": "not ours stands on cni0",
    "tc qdisc add dev flannel.1 ingress": "not ours stands on flannel.1",
    "ip xfrm policy add src 10.1.45.0/24 dst 10.1.46.0/24 dir out action block": "an IPsec policy is for",
}


@pytest.mark.parametrize("change", BESIDE)
def test_what_guards_beside_rules(auto: Tried, change: str) -> None:
    run("ip route add 10.1.0.0/16 via 192.168.64.9 table 77")
    assert auto.free() == [True] * 4
    run(change)
    assert auto.free() == [False] * 4
    assert BESIDE[change] in auto.prover.proof.guards[0].why


@pytest.mark.parametrize(
    "change",
    [
        "ip rule add fwmark 5 lookup 77",
        "ip rule add iif lo lookup 77",
        "ip rule add lookup 78",  # as Tailscale's 52: nothing in it is for pods
        "ip rule add from 192.0.2.0/24 lookup 77",
        "ip route add 10.0.0.0/8 via 192.168.64.9",
        "tc qdisc add dev eth0 root pfifo",
        "tc qdisc add dev eth0 root tbf rate 1gbit burst 90kb latency 9ms",
    ],
)
def test_what_beside_rules_guards_nobody(auto: Tried, change: str) -> None:
    run(
        "ip route add 10.1.0.0/16 via 192.168.64.9 table 77",
        "ip route add 192.0.2.0/24 via 192.168.64.9 table 78",
    )
    run(change)
    assert auto.free() == [True] * 4


def test_a_pod_s_address_that_a_route_leads_elsewhere(auto: Tried) -> None:
    run(f"ip route add blackhole {PODS[2]}")
    assert auto.free() == [True, True, False, True]


def test_a_connection_that_outlives_its_rule_guards_its_pod(auto: Tried) -> None:
    original = f"-p udp -s {PODS[1]} -d 10.96.0.10 --sport 4000 --dport 53"
    run(f"conntrack -I {original} --dst-nat {REMOTE[0]} -t 60 -u SEEN_REPLY")
    run(f"conntrack -I -p udp -s {PODS[2]} -d 192.0.2.1 --sport 4000 --dport 53 --src-nat {NODE_IP} -t 60")
    assert auto.free() == [True, False, True, True]
    assert "translated" in auto.prover.proof.guards[0].why
    assert auto.prover.due > 0
    run(f"conntrack -D {original}")
    assert auto.free() == [True] * 4
    assert auto.prover.due == 0.0


def test_whether_another_peer_could_matter(auto: Tried) -> None:
    assert auto.free() == [True] * 4
    assert not auto.prover.peers_matter
    run("iptables -A INPUT -s 192.168.64.77 -j DROP")
    eventually(lambda: auto.said, "the change is heard of")
    assert auto.free() == [True] * 4
    assert auto.prover.peers_matter
    run(f"iptables -A INPUT -s {PEER_IP} -p udp --dport 8472 -j DROP")
    eventually(lambda: auto.free() == [False] * 4, "all are guarded")


@pytest.mark.parametrize(
    ("route", "matters"),
    [
        ("10.1.99.128/25", True),
        ("10.1.99.0/24", False),
        ("10.1.99.0/24 tos 4", True),
        ("10.1.45.128/25", False),
        ("10.0.0.0/8", False),
    ],
)
def test_whether_a_route_could_lie_inside_another_peer(auto: Tried, route: str, *, matters: bool) -> None:
    run(f"ip route add {route} via 192.168.64.9")
    assert auto.free() == ([False] * 4 if "tos" in route else [True] * 4) or "10.1.45" in route
    assert auto.prover.peers_matter == matters


def test_by_flow_nobody_is_free_and_rules_that_judge_packets_are_the_kernels(flows: Tried) -> None:
    nft(FORWARD.replace("RULE", f"ip saddr {PODS[0]} limit rate over 9/second drop; ip saddr {PODS[1]} drop"))
    flows.settle()
    assert flows.prover.proof.free == ()
    kernel = flows.prover.proof.of_level(Level.KERNEL)
    assert [is_in(kernel, pod) for pod in PODS] == [True, False, False, False]
    assert not flows.vouched


def test_rules_that_cannot_be_read_leave_nobody_free(auto: Tried, monkeypatch: pytest.MonkeyPatch) -> None:
    auto.settle()
    monkeypatch.setattr("flannel_ebpf.kernel.firewall.nfnetlink._GETCHAIN", 99)
    auto.prover.touched(None)
    assert auto.free() == [False] * 4
    assert "cannot be read" in auto.prover.proof.guards[0].why
    monkeypatch.undo()
    assert auto.free() == [True] * 4
