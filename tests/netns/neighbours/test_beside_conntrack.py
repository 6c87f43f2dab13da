"""conntrack's entries of connections that BPF carries: states and lifetimes as if it saw every packet."""

from __future__ import annotations

import re
import select
import socket
import struct
import time

import pytest

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node
from tests.netns.neighbours.beside import ROUNDS, Beside, Outcome, ask, commands, echo, patience
from tests.netns.traffic import connection, tcp_client, tcp_server, udp

CLIENT_PORT = 4321
INVALID = "iptables -w {} FORWARD -m conntrack --ctstate INVALID -j DROP"


@pytest.fixture
def beside(beside: Beside) -> Beside:
    """Both nodes of both labs track connections."""
    for lab in (beside.kernel, beside.flows):
        for node in lab.nodes:
            if node.run(INVALID.format("-C").split(), check=False).returncode:
                node.run(INVALID.format("-I").split())
            node.run(["conntrack", "-F"])
    return beside


def entries(node: Node, port: int = CLIENT_PORT) -> list[tuple[str, int]]:
    """Return state and seconds left of the entries of connections from this port."""
    listed = node.run(["conntrack", "-L", "-p", "tcp", "--sport", str(port)]).stdout
    return [(state, int(left)) for left, state in re.findall(r"^tcp\s+6 (\d+) (\w+) ", listed, re.M)]


def states(lab: Lab) -> list[str]:
    """Return the entries' states, first node's first, with a word for how long each lives."""
    spans = ((10, "10 s"), (130, "2 min"), (310, "5 min"), (3700, "1 h"), (432_001, "5 d"))
    return [
        f"{node.name} {state} {next(name for most, name in spans if left <= most)}"
        for node in lab.nodes
        for state, left in entries(node)
    ]


def reset(sock: socket.socket) -> None:
    """Close a connection by RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


ENDS = {
    "open": lambda _near, _far: None,
    "client closes": lambda near, far: (near.close(), far.recv(1), far.close()),
    "server closes": lambda near, far: (far.close(), near.recv(1), near.close()),
    "client shuts down": lambda near, far: (near.shutdown(socket.SHUT_WR), far.recv(1)),
    "server shuts down, client sends on": lambda near, far: (
        far.shutdown(socket.SHUT_WR),
        near.recv(1),
        [near.sendall(b"x" * 500) or far.recv(500) for _ in range(30)],
    ),
}


@pytest.mark.parametrize("end", list(ENDS))
def test_states(beside: Beside, end: str) -> None:
    def scenario(lab: Lab) -> Outcome:
        with connection(lab.pod("n1p1"), lab.pod("n2p1"), source=CLIENT_PORT) as (near, far):
            assert echo(near, far) == ROUNDS
            ENDS[end](near, far)  # type: ignore[no-untyped-call] # a lambda
            time.sleep(0.2)  # the last ACK has no answer to wait for
            found = states(lab)
        for node in lab.nodes:
            node.run(["conntrack", "-F"])
        return {"states": found}

    assert len(beside.same(scenario)["states"]) == 2  # type: ignore[arg-type] # a list


@pytest.mark.parametrize("by", ["client", "server"])
def test_a_reset_ends_the_entry_within_ten_seconds(beside: Beside, by: str) -> None:
    """As on the kernel path, though not always by that name."""

    def scenario(lab: Lab) -> Outcome:
        with connection(lab.pod("n1p1"), lab.pod("n2p1"), source=CLIENT_PORT) as (near, far):
            assert echo(near, far) == ROUNDS
            reset(near if by == "client" else far)
            other = far if by == "client" else near
            with pytest.raises(ConnectionResetError):
                other.recv(1)
            left = [seconds for node in lab.nodes for _, seconds in entries(node)]
        for node in lab.nodes:
            node.run(["conntrack", "-F"])
        return {"entries": len(left), "soon": all(seconds <= 10 for seconds in left)}

    assert beside.same(scenario) == {"entries": 2, "soon": True}


def test_a_port_that_is_used_again_at_once(beside: Beside) -> None:
    """Within conntrack's two minutes of TIME_WAIT: each connection is a new one, none is invalid."""

    def scenario(lab: Lab) -> Outcome:
        server = lab.pod("n2p1")
        lab.pod("n1p1").run(["sysctl", "-qw", "net.ipv4.tcp_tw_reuse=1"])
        rounds = []
        with tcp_server(server) as listener:
            for _ in range(6):
                to = (str(server.ip), listener.getsockname()[1])
                with tcp_client(lab.pod("n1p1"), to, port=CLIENT_PORT) as near, listener.accept()[0] as far:
                    rounds.append(echo(near, far, 30))
                    far.close()  # TIME_WAIT is the server's
                    near.recv(1)
        return {"rounds": rounds, "entries": [len(entries(node)) for node in lab.nodes]}

    assert beside.same(scenario) == {"rounds": [30] * 6, "entries": [1, 1]}


def test_a_udp_stream_lives_as_long(beside: Beside) -> None:
    """conntrack takes for a stream what it sees after two seconds."""

    def scenario(lab: Lab) -> Outcome:
        server = lab.pod("n2p1")
        with udp(lab.pod("n1p1"), CLIENT_PORT) as near, udp(server) as far:
            to = (str(server.ip), far.getsockname()[1])
            ends = time.monotonic() + 4.5
            while time.monotonic() < ends:
                assert ask(lab, near, to, far, 50).answered == 50
        found = []
        for node in lab.nodes:
            listed = node.run(["conntrack", "-L", "-p", "udp", "--sport", str(CLIENT_PORT)]).stdout
            found.append("ASSURED" in listed)
            left = int(re.findall(r"^udp\s+17 (\d+)", listed, re.M)[0])
            found.append(left > 100)
        return {"stream": found}

    assert beside.same(scenario) == {"stream": [True] * 4}


def test_who_speaks_first_after_a_rest(beside: Beside) -> None:
    """conntrack without loose pickup, policy by state: the server's word is of an established connection."""
    rule = "FORWARD -p tcp --sport 5300 -m conntrack --ctstate NEW -j DROP"
    do = ["sysctl -qw net.netfilter.nf_conntrack_tcp_loose=0", f"iptables -w -I {rule}"]
    back = ["sysctl -qw net.netfilter.nf_conntrack_tcp_loose=1", f"iptables -w -D {rule}"]

    def scenario(lab: Lab) -> Outcome:
        with (
            commands(lab.nodes, do, back),
            connection(lab.pod("n1p1"), lab.pod("n2p1"), port=5300) as (near, far),
        ):
            rounds = [echo(near, far)]
            time.sleep(3)  # several revalidations without a packet
            rounds.append(echo(far, near))
        return {"rounds": rounds}

    assert beside.same(scenario) == {"rounds": [ROUNDS, ROUNDS]}


def test_a_reset_after_gigabytes_is_heard(beside: Beside) -> None:
    """conntrack knows the window of 2 GiB ago: an RST that far beyond it is invalid by Linux's defaults."""
    size = int(2.4 * 2**30)
    sink = f"""
import socket
server = socket.create_server(("0.0.0.0", 5301))
print("ready", flush=True)
peer, _ = server.accept()
room, left = memoryview(bytearray(1 << 20)), {size}
while left:
    left -= peer.recv_into(room, min(left, len(room)))
print("all", flush=True)
try:
    print(peer.recv(1), flush=True)
except OSError as error:
    print(type(error).__name__, flush=True)
"""

    def scenario(lab: Lab) -> Outcome:
        server = lab.pod("n2p1")
        with server.popen(["python3", "-IS", "-c", sink]) as process:
            assert process.stdout
            try:
                assert process.stdout.readline() == "ready\n"
                near = tcp_client(lab.pod("n1p1"), (str(server.ip), 5301))
                block, left = bytes(1 << 20), size
                near.settimeout(60)
                while left:
                    left -= near.send(block[: min(left, len(block))])
                assert process.stdout.readline() == "all\n"
                reset(near)
                told = select.select([process.stdout], [], [], 10 * patience())[0]
                heard = process.stdout.readline() if told else "nothing"
                return {"heard": heard}
            finally:
                process.kill()

    assert beside.same(scenario) == {"heard": "ConnectionResetError\n"}
