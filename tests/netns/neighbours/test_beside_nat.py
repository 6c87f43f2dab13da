"""Translated connections beside BPF: who is seen, and who answers, is netfilter's decision alone."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import pytest

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node
from tests.netns.neighbours.beside import Beside, Outcome, Talk, ask, ask_tcp, commands, echo
from tests.netns.traffic import connection, tcp_client, tcp_server, udp

SERVICE, PORT = "10.96.0.10", 5300
PORTMAP = """\
*nat
:CNI-HOSTPORT-SETMARK -
:CNI-HOSTPORT-MASQ -
-A CNI-HOSTPORT-SETMARK -j MARK --set-xmark 0x2000/0x2000
-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE
-I POSTROUTING -m comment --comment "CNI portfwd requiring masquerade" -j CNI-HOSTPORT-MASQ
COMMIT
"""
"""What the CNI portmap plugin leaves on a node that has had a hostPort; netavark takes the same bit."""


@contextmanager
def portmap(nodes: Sequence[Node]) -> Generator[None, None, None]:
    """The plugin's rules on nodes while the block runs."""
    undo = [
        "iptables -w -t nat -D POSTROUTING 1",
        "iptables -w -t nat -F CNI-HOSTPORT-MASQ",
        "iptables -w -t nat -F CNI-HOSTPORT-SETMARK",
        "iptables -w -t nat -X CNI-HOSTPORT-MASQ",
        "iptables -w -t nat -X CNI-HOSTPORT-SETMARK",
    ]
    for node in nodes:
        node.run(["iptables-restore", "-w", "--noflush"], stdin=PORTMAP)
    with commands(nodes, [], undo):
        yield


def forget(lab: Lab) -> None:
    """Take every entry out of both nodes' conntrack."""
    for node in lab.nodes:
        node.run(["conntrack", "-F"])


def test_no_connection_is_masqueraded_because_bpf_learned_from_it(beside: Beside) -> None:
    """The first packet of an entry decides its translation: no packet may carry the plugin's mark then."""

    def scenario(lab: Lab) -> Outcome:
        client, server = lab.pod("n1p1"), lab.pod("n2p1")
        with portmap(lab.nodes), udp(client) as near, udp(server) as far:
            to = (str(server.ip), far.getsockname()[1])
            talk = ask(lab, near, to, far)
            for _ in range(6):  # whichever packet comes first then
                forget(lab)
                ask(lab, near, to, far, 20, talk)
            with connection(client, server) as (here, there):
                before = echo(here, there)
                forget(lab)
                return {"udp": (talk.answered, talk.askers), "tcp": (before, echo(here, there))}

    assert beside.same(scenario) == {"udp": (180, {"n1p1"}), "tcp": (60, 60)}


def dnat(to: str, port: int, protocol: str, backend: str) -> tuple[list[str], list[str]]:
    """Return the commands that publish a pod at `to`, and those that end it."""
    rule = f"-d {to} -p {protocol} --dport {port} -j DNAT --to-destination {backend}:{port}"
    return [f"iptables -w -t nat -I PREROUTING {rule}"], [f"iptables -w -t nat -D PREROUTING {rule}"]


@pytest.mark.parametrize("first", ["service", "direct"])
def test_two_udp_flows_that_share_a_tuple(beside: Beside, first: str) -> None:
    """From one port to a service and to the pod behind it: each is answered by whom it asked."""

    def scenario(lab: Lab) -> Outcome:
        client, server, n1 = lab.pod("n1p1"), lab.pod("n2p1"), lab.node("n1")
        with (
            commands([n1], *dnat(SERVICE, PORT, "udp", str(server.ip))),
            udp(client, 4000) as near,
            udp(server, PORT) as far,
        ):
            ways = {"service": (SERVICE, PORT), "direct": (str(server.ip), PORT)}
            talks = {name: Talk() for name in ways}
            ask(lab, near, ways[first], far, 40, talks[first])
            for _ in range(80):
                for name, to in ways.items():
                    ask(lab, near, to, far, 1, talks[name])
            return {name: (talk.answered, talk.answerers) for name, talk in talks.items()}

    came = beside.same(scenario)
    service, direct = came["service"], came["direct"]
    assert (service[1], direct[1]) == ({SERVICE}, {"n2p1"})  # type: ignore[index] # a talk's figures
    forget(beside.flows)


def test_two_tcp_connections_that_share_a_tuple(beside: Beside) -> None:
    """A port that the server's node publishes, and the pod behind it, asked from one port of the client."""

    def scenario(lab: Lab) -> Outcome:
        client, server, n2 = lab.pod("n1p1"), lab.pod("n2p1"), lab.node("n2")
        published = str(n2.gateway.ip)
        with (
            commands([n2], *dnat(published, PORT, "tcp", str(server.ip))),
            tcp_server(server, PORT) as listener,
            tcp_client(client, (published, PORT), port=4000) as one,
            listener.accept()[0] as far_one,
            tcp_client(client, (str(server.ip), PORT), port=4000) as two,
            listener.accept()[0] as far_two,
        ):
            rounds = [0, 0]
            for _ in range(30):
                rounds[0] += echo(one, far_one, 2)
                rounds[1] += echo(two, far_two, 2)
            return {"published": rounds[0], "direct": rounds[1]}

    assert beside.same(scenario, carried=False) == {"published": 60, "direct": 60}


def test_a_service_with_many_connections_one_after_the_other(beside: Beside) -> None:
    def scenario(lab: Lab) -> Outcome:
        client, server, n1 = lab.pod("n1p1"), lab.pod("n2p1"), lab.node("n1")
        with commands([n1], *dnat(SERVICE, PORT, "tcp", str(server.ip))):
            return {"came": [ask_tcp(client, server, (SERVICE, PORT), PORT, 20) for _ in range(20)]}

    assert beside.same(scenario) == {"came": [20] * 20}


def test_a_connection_goes_on_without_its_entry(beside: Beside) -> None:
    """`conntrack -F` in mid-connection, without rules that translate."""

    def scenario(lab: Lab) -> Outcome:
        with connection(lab.pod("n1p1"), lab.pod("n2p1")) as (near, far):
            rounds = [echo(near, far)]
            for _ in range(3):
                forget(lab)
                rounds.append(echo(far, near))
        return {"rounds": rounds}

    assert beside.same(scenario) == {"rounds": [60] * 4}
