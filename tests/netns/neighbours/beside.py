"""Two labs side by side, one without programs: what neighbours do to traffic is the same in both."""

from __future__ import annotations

import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from tests.netns.paths import watch
from tests.netns.traffic import Address, receive, tcp_client, tcp_server, udp
from tests.polls import stretch

ROUNDS = 60
"""Questions and answers after which a flow that may be BPF's is."""

Outcome = Mapping[str, object]
Scenario = Callable[[Lab], Outcome]


@dataclass(frozen=True)
class Beside:
    """`kernel` has flannel's overlay alone, `flows` has programs too."""

    kernel: Lab
    flows: Lab

    def same(self, scenario: Scenario, *, carried: bool = True) -> Outcome:
        """Run `scenario` in both labs, assert that it comes out the same, and return what.

        `carried`: BPF must have had a part in it, or the comparison says nothing.
        """
        expected = scenario(self.kernel)
        one, two = self.flows.nodes
        with watch(one) as near, watch(two) as far:
            came = scenario(self.flows)
        assert came == expected, f"with programs {came}, without {expected}"
        assert not carried or near.fast + far.fast > 0, f"{near.reasons}\n{far.reasons}"
        return came


@contextmanager
def commands(nodes: Sequence[Node], do: Sequence[str], undo: Sequence[str]) -> Generator[None, None, None]:
    """Run commands on nodes, and others after the block, whatever came of it."""
    try:
        for node in nodes:
            for command in do:
                node.run(command.split())
        yield
    finally:
        for node in nodes:
            for command in undo:
                node.run(command.split(), check=False)


def patience() -> float:
    """Return the seconds after which a packet counts as lost."""
    return 0.2 * stretch()


@dataclass
class Talk:
    """Questions that were answered; who asked and who answered, as the other side saw it."""

    answered: int = 0
    askers: set[str] = field(default_factory=set)
    answerers: set[str] = field(default_factory=set)
    tos: set[int] = field(default_factory=set)
    ttl: set[int] = field(default_factory=set)


def ask(
    lab: Lab,
    near: socket.socket,
    to: Address,
    far: socket.socket,
    rounds: int = ROUNDS,
    talk: Talk | None = None,
) -> Talk:
    """Ask by UDP and wait for each answer; after two that do not come, no more is asked."""
    talk = talk or Talk()
    missed = 0
    for sock in (near, far):
        sock.settimeout(patience())
    for _ in range(rounds):
        near.sendto(b"?", to)
        try:
            _, tos, ttl, asker = receive(far)
            talk.askers.add(name_of(lab, asker[0]))
            talk.tos.add(tos)
            talk.ttl.add(ttl)
            far.sendto(b"!", asker)
            _, _, _, answerer = receive(near)
        except TimeoutError:
            missed += 1
            if missed == 2:
                break
            continue
        talk.answerers.add(name_of(lab, answerer[0]))
        talk.answered += 1
    return talk


def ask_udp(lab: Lab, client: Host, server: Host, rounds: int = ROUNDS) -> Talk:
    """Ask on a new flow."""
    with udp(client) as near, udp(server) as far:
        return ask(lab, near, (str(server.ip), far.getsockname()[1]), far, rounds)


def echo(near: socket.socket, far: socket.socket, rounds: int = ROUNDS) -> int:
    """Return how many questions on a TCP connection were answered, up to the first that was not."""
    for number in range(rounds):
        try:
            for source, target in ((near, far), (far, near)):
                source.settimeout(10 * patience())
                target.settimeout(10 * patience())
                source.sendall(b"x" * 64)
                left = 64
                while left:
                    data = target.recv(left)
                    if not data:
                        return number
                    left -= len(data)
        except (TimeoutError, ConnectionError):
            return number
    return rounds


def ask_tcp(
    client: Host, server: Host, to: Address | None = None, port: int = 0, rounds: int = ROUNDS
) -> int | str:
    """Connect and ask; return how many questions were answered, or what came of connecting."""
    with tcp_server(server, port) as listener:
        address = to or (str(server.ip), listener.getsockname()[1])
        listener.settimeout(10 * patience())
        try:
            near = tcp_client(client, address, 3 * patience())
        except OSError as error:
            return type(error).__name__
        try:
            with near, listener.accept()[0] as far:
                return echo(near, far, rounds)
        except TimeoutError:
            return "not accepted"


def name_of(lab: Lab, address: str) -> str:
    """Return who has this address: addresses differ from lab to lab."""
    known = {str(one.ip): one.name for node in lab.nodes for one in (node, *node.pods)}
    for node in lab.nodes:
        known[str(node.gateway.ip)] = f"{node.name}-bridge"
        known[str(node.subnet[0])] = f"{node.name}-flannel"
    return known.get(address, address)
