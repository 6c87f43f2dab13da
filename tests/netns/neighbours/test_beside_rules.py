"""Rules that other programs put into netfilter and routing: what they do to a flow they do beside BPF."""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence

import pytest

from flannel_ebpf.lab import Lab
from tests.netns.neighbours.beside import ROUNDS, Beside, Outcome, ask_tcp, ask_udp, commands, patience
from tests.netns.traffic import tcp_client, tcp_server


def undo(commands: Sequence[str]) -> list[str]:
    """Return the commands that take back insertions."""
    return [command.replace(" -I ", " -D ").replace(" add ", " del ") for command in commands]


MARKS = {
    "mark 0 alone passes": [
        "iptables -w -I FORWARD -d 10.1.0.0/16 -j DROP",
        "iptables -w -I FORWARD -m mark --mark 0 -j ACCEPT",
    ],
    "whatever is marked is dropped": ["iptables -w -I FORWARD -m mark ! --mark 0 -j DROP"],
    "one mark alone passes": [
        "iptables -w -t mangle -I PREROUTING -j MARK --or-mark 1",
        "iptables -w -I FORWARD -d 10.1.0.0/16 -j DROP",
        "iptables -w -I FORWARD -m mark --mark 1 -j ACCEPT",
    ],
    "portmap's, Calico's, kube-proxy's and Tailscale's bits are dropped": [
        "iptables -w -I FORWARD -m mark ! --mark 0/0xffffffff -j DROP",
        "iptables -w -t mangle -I POSTROUTING -m mark ! --mark 0/0xffffffff -j DROP",
    ],
    "marks are kept with the connection": [
        "iptables -w -t mangle -I PREROUTING -j CONNMARK --save-mark",
        "iptables -w -t mangle -I PREROUTING -m connmark ! --mark 0 -j DROP",
        "iptables -w -t mangle -I PREROUTING -j CONNMARK --restore-mark",
    ],
}


@pytest.mark.parametrize("rules", list(MARKS))
def test_rules_that_compare_marks_whole(beside: Beside, rules: str) -> None:
    def scenario(lab: Lab) -> Outcome:
        client, server = lab.pod("n1p1"), lab.pod("n2p1")
        with commands(lab.nodes, MARKS[rules], undo(MARKS[rules])):
            return {"udp": ask_udp(lab, client, server).answered, "tcp": ask_tcp(client, server)}

    assert beside.same(scenario) == {"udp": ROUNDS, "tcp": ROUNDS}


def test_a_routing_rule_for_marked_packets(beside: Beside) -> None:
    """A VPN's: what has exactly this mark takes its table, and so do packets that BPF learns from."""
    do = [
        "iptables -w -t mangle -I PREROUTING -s 10.1.0.0/16 -j MARK --or-mark 0x51",
        "ip rule add fwmark 0x51 blackhole priority 90",
    ]

    def scenario(lab: Lab) -> Outcome:
        with commands([lab.node("n1")], do, undo(do)):
            return {"udp": ask_udp(lab, lab.pod("n1p1"), lab.pod("n2p1")).answered}

    assert beside.same(scenario, carried=False) == {"udp": 0}


CHANGES = {
    "DSCP": (["iptables -w -t mangle -I FORWARD -s 10.1.0.0/16 -j DSCP --set-dscp 46"], ["tos"]),
    "TTL": (["iptables -w -t mangle -I POSTROUTING -s 10.1.0.0/16 -j TTL --ttl-set 33"], ["ttl"]),
    "class": (["iptables -w -t mangle -I POSTROUTING -s 10.1.0.0/16 -j CLASSIFY --set-class 1:10"], []),
    "nothing: not tracked": (["iptables -w -t raw -I PREROUTING -s 10.1.0.0/16 -j NOTRACK"], []),
    "source": (["iptables -w -t nat -I POSTROUTING -s 10.1.0.0/16 -d 10.1.0.0/16 -j MASQUERADE"], ["askers"]),
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_rules_that_change_packets(beside: Beside, what: str) -> None:
    """All of them are changed, not only those that BPF learns from."""
    do, seen = CHANGES[what]

    def scenario(lab: Lab) -> Outcome:
        client, server, n1 = lab.pod("n1p1"), lab.pod("n2p1"), lab.node("n1")
        with commands([n1], do, undo(do)):
            talk = ask_udp(lab, client, server)
            return {
                "udp": talk.answered,
                **{name: getattr(talk, name) for name in seen},
                "tcp": ask_tcp(client, server),
            }

    assert beside.same(scenario)["udp"] == ROUNDS


def test_synproxy(beside: Beside) -> None:
    """Its sequence numbers are not the client's: it must see every packet of the connection."""
    port = 5300
    do = [
        "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0",
        f"iptables -w -t raw -I PREROUTING -p tcp --dport {port} --syn -j CT --notrack",
        "iptables -w -I FORWARD -m conntrack --ctstate INVALID -j DROP",
        f"iptables -w -I FORWARD -p tcp --dport {port} -m conntrack --ctstate INVALID,UNTRACKED "
        "-j SYNPROXY --sack-perm --timestamp --wscale 7 --mss 1410",
    ]

    def scenario(lab: Lab) -> Outcome:
        client, server, n2 = lab.pod("n1p1"), lab.pod("n2p1"), lab.node("n2")
        back = [*undo(do[1:]), "sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1"]
        with commands([n2], do, back):
            rounds = [ask_tcp(client, server, port=port) for _ in range(5)]
            listed = n2.run(["iptables", "-w", "-nvxL", "FORWARD"]).stdout
        met = next(int(line.split()[0]) for line in listed.splitlines() if "SYNPROXY" in line)
        return {"tcp": rounds, "answered for the server": met >= 5}

    assert beside.same(scenario) == {"tcp": [ROUNDS] * 5, "answered for the server": True}


@pytest.mark.parametrize("end", ["close", "reset"])
def test_a_limit_of_connections(beside: Beside, end: str) -> None:
    """Ended connections do not count; those that RST ended do for ten seconds, see weaknesses.md."""
    do = ["iptables -w -I FORWARD -p tcp --syn -m connlimit --connlimit-above 5 --connlimit-mask 32 -j DROP"]

    def scenario(lab: Lab) -> Outcome:
        client, server = lab.pod("n1p1"), lab.pod("n2p1")
        connected = 0
        with commands([lab.node("n2")], do, undo(do)), tcp_server(server) as listener:
            to = (str(server.ip), listener.getsockname()[1])
            for _ in range(12):
                try:
                    near = tcp_client(client, to, 3 * patience())
                except TimeoutError:
                    continue
                with near, listener.accept()[0] as far:
                    if end == "reset":
                        near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    near.close()
                    far.recv(1) if end == "close" else None
                    connected += 1
        return {"connected": connected}

    assert beside.same(scenario, carried=False) == {"connected": 12}
