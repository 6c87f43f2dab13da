"""Services through the real kube-proxy: whatever happens with BPF also happens without, packet for packet.

For each mode of kube-proxy the same things are done in a lab with the fast path and in one whose datapath is
the kernel's, and what clients and pods saw is compared.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import pytest

from flannel_ebpf.lab import Host, Lab, Pod
from flannel_ebpf.lab.spec import ETCD_IP, KUBE_PROXY_MODES
from tests.kube.service_traffic import PORT, Answer, Service, ask, serving
from tests.netns.labs import MakeLab
from tests.netns.paths import watch
from tests.netns.traffic import tcp_client

log = logging.getLogger("figures")


@dataclass
class Served:
    """A lab whose first pods serve, behind services that lead to all three."""

    lab: Lab
    web: Service
    local: Service
    sticky: Service
    changing: Service

    @classmethod
    def of(cls, lab: Lab) -> Served:
        made = cls(
            lab,
            Service(lab, "web", 10, type="NodePort"),
            Service(lab, "local", 20, type="NodePort", externalTrafficPolicy="Local"),
            Service(lab, "sticky", 30, sessionAffinity="ClientIP"),
            Service(lab, "changing", 40),
        )
        for service in (made.web, made.local, made.sticky, made.changing):
            service.point_to(made.servers)
        return made

    @property
    def servers(self) -> list[Pod]:
        return [self.lab.pod(f"n{number}p1") for number in (1, 2, 3)]

    @property
    def outside(self) -> Host:
        """A host of the underlay that is no node."""
        return Host("outside", self.lab.spec.switch_ns, ETCD_IP)


@pytest.fixture(scope="module", params=KUBE_PROXY_MODES)
def served(request: pytest.FixtureRequest, make_kube_lab: MakeLab, programs: Path) -> Iterator[list[Served]]:
    """A lab with the fast path, then one whose datapath is the kernel's."""
    labs = [
        make_kube_lab(
            nodes=3,
            pods_per_node=2,
            datapath=datapath,
            kube_proxy=str(programs / "kube-proxy"),
            kube_proxy_mode=request.param,
            extra_up_args=("--ip-masq",),
        )
        for datapath in ("ebpf", "kernel")
    ]
    try:
        with serving([lab.pod(f"n{number}p1") for lab in labs for number in (1, 2, 3)]):
            yield [Served.of(lab) for lab in labs]
    finally:
        for lab in labs:
            lab.down()


T = TypeVar("T")


def same(served: list[Served], what: Callable[[Served], T]) -> T:
    """Do the same in both labs, and return what came of it, which must be the same."""
    fast, kernel = (what(one) for one in served)
    name = getattr(what, "__name__", "")
    log.info("service: %s | %s | %s", served[0].lab.spec.kube_proxy_mode, name, fast)
    assert fast == kernel
    return fast


def seen(answers: list[Answer]) -> list[Answer]:
    return sorted(set(answers))


def test_cluster_ip(served: list[Served]) -> None:
    def from_a_pod(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n1p2"), one.web.ip, 80, 40))

    def from_a_server(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n1p1"), one.web.ip, 80, 40))

    def from_a_node(one: Served) -> list[Answer]:
        return seen(ask(one.lab.node("n1"), one.web.ip, 80, 40))

    def by_udp(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n1p2"), one.web.ip, 80, 40, "udp"))

    client = str(served[0].lab.pod("n1p2").ip)
    everybody = [(f"n{number}p1", client) for number in (1, 2, 3)]
    assert same(served, from_a_pod) == everybody
    assert same(served, by_udp) == everybody
    assert [pod for pod, _ in same(served, from_a_server)] == ["n1p1", "n2p1", "n3p1"]
    assert [pod for pod, _ in same(served, from_a_node)] == ["n1p1", "n2p1", "n3p1"]


def test_node_port(served: list[Served]) -> None:
    def from_outside(one: Served) -> list[Answer]:
        return seen(ask(one.outside, one.lab.node("n1").ip, one.web.node_port, 40))

    def from_another_nodes_pod(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n2p2"), one.lab.node("n1").ip, one.web.node_port, 40))

    def from_another_node(one: Served) -> list[Answer]:
        return seen(ask(one.lab.node("n3"), one.lab.node("n1").ip, one.web.node_port, 40))

    def by_udp_from_outside(one: Served) -> list[Answer]:
        return seen(ask(one.outside, one.lab.node("n2").ip, one.web.node_port, 40, "udp"))

    for what in (from_outside, from_another_nodes_pod, from_another_node, by_udp_from_outside):
        assert [pod for pod, _ in same(served, what)] == ["n1p1", "n2p1", "n3p1"]


def test_node_port_of_the_local_policy_keeps_the_clients_address(served: list[Served]) -> None:
    def from_outside(one: Served) -> list[Answer]:
        return seen(ask(one.outside, one.lab.node("n2").ip, one.local.node_port, 20))

    assert same(served, from_outside) == [("n2p1", str(ETCD_IP))]


def test_session_affinity(served: list[Served]) -> None:
    def pods_that_answered_each_client(one: Served) -> list[int]:
        clients = [one.lab.pod("n1p2"), one.lab.pod("n2p2"), one.lab.pod("n3p2")]
        return [len({pod for pod, _ in ask(client, one.sticky.ip, 80, 20)}) for client in clients]

    assert same(served, pods_that_answered_each_client) == [1, 1, 1]


def test_a_port_used_for_the_service_and_for_the_pod_itself(served: list[Served]) -> None:
    """The same client port to the service and to the pod behind it: whose answers may not be mixed up."""

    def in_turns(one: Served) -> list[list[Answer]]:
        client, far = one.lab.pod("n1p2"), one.lab.pod("n3p1")
        turns = []
        for number in range(4):
            for kind in ("tcp", "udp"):
                port = 40000 + number % 2
                turns.append(ask(client, far.ip, PORT, 1, kind, port))
                turns.append(
                    [
                        (pod.partition("n")[0], peer)
                        for pod, peer in ask(client, one.web.ip, 80, 1, kind, port)
                    ]
                )
        return turns

    client = str(served[0].lab.pod("n1p2").ip)
    turns = same(served, in_turns)
    assert turns[::2] == [[("n3p1", client)]] * 8
    assert turns[1::2] == [[("", client)]] * 8


def test_endpoints_that_change_under_traffic(served: list[Served]) -> None:
    """Whoever connects meets the endpoints of the moment, and nobody meets none."""

    def changes(one: Served) -> list[list[str]]:
        service, client = one.changing, one.lab.pod("n1p2")
        found, failed = [], Counter[str]()
        for pods in (one.servers, one.servers[1:], one.servers[:1], one.servers[2:], one.servers):
            with asking(client, service, failed):
                service.point_to(pods)
            found.append(
                sorted({pod for kind in ("tcp", "udp") for pod, _ in ask(client, service.ip, 80, 40, kind)})
            )
        assert not failed
        return found

    assert same(served, changes) == [
        ["n1p1", "n2p1", "n3p1"], ["n2p1", "n3p1"], ["n1p1"], ["n3p1"], ["n1p1", "n2p1", "n3p1"],
    ]  # fmt: skip


@contextmanager
def asking(client: Host, service: Service, failed: Counter[str]) -> Iterator[None]:
    """Connect to the service again and again during the block; count what failed."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            for kind in ("tcp", "udp"):
                failed.update(
                    pod for pod, _ in ask(client, service.ip, 80, 20, kind) if not pod.startswith("n")
                )

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_a_connection_outlives_its_endpoint(served: list[Served]) -> None:
    """kube-proxy lets established TCP connections be; every byte comes back while others go elsewhere."""

    def stays(one: Served) -> tuple[bool, bool]:
        service, client = one.changing, one.lab.pod("n1p2")
        service.point_to(one.servers[2:])
        with tcp_client(client, (service.ip, 80), 20) as sock:
            reader = sock.makefile("rb")
            before = json.loads(reader.readline())[0]
            whole = echoed(sock, reader, 4 << 20)
            service.point_to(one.servers[:2])
            others = {pod for pod, _ in ask(client, service.ip, 80, 20)} <= {"n1p1", "n2p1"}
            whole = whole and echoed(sock, reader, 4 << 20)
        service.point_to(one.servers)
        return before == "n3p1" and whole, others

    assert same(served, stays) == (True, True)


def echoed(sock: socket.socket, reader: BinaryIO, size: int) -> bool:
    """Send random bytes, and say whether the same come back."""
    body = os.urandom(size)
    sender = threading.Thread(target=sock.sendall, args=(body,))
    sender.start()
    back = reader.read(size)
    sender.join()
    return back == body


def test_a_network_policy_beside_kube_proxy(served: list[Served]) -> None:
    """What is established goes on; nothing new begins, by whatever way the forbidden pod is reached."""

    def forbidden(one: Served) -> list[object]:
        client, far = one.lab.pod("n1p2"), one.lab.pod("n3p1")
        one.web.point_to(one.servers)
        with tcp_client(client, (str(far.ip), PORT), 20) as sock:
            reader = sock.makefile("rb")
            reader.readline()
            whole = echoed(sock, reader, 4 << 20)
            with denied(one, client, far):
                found: list[object] = [
                    seen(ask(client, far.ip, PORT, 5)),
                    seen(ask(client, far.ip, PORT, 5, "udp")),
                    "n3p1" in {pod for pod, _ in ask(client, one.web.ip, 80, 40)},
                    seen(ask(one.lab.pod("n2p2"), far.ip, PORT, 5)),
                    whole and echoed(sock, reader, 4 << 20),
                ]
        return [*found, seen(ask(client, far.ip, PORT, 5))]

    refused = "failed: ConnectionRefusedError"
    client, other = (str(served[0].lab.pod(name).ip) for name in ("n1p2", "n2p2"))
    assert same(served, forbidden) == [
        [(refused, "")], [(refused, "")], False,
        [("n3p1", other)], True, [("n3p1", client)],
    ]  # fmt: skip


@contextmanager
def denied(one: Served, client: Pod, server: Pod) -> Iterator[None]:
    """Forbid one pod to reach another, on every node, as an engine for NetworkPolicy writes it there."""
    if one.lab.spec.kube_proxy_mode == "nftables":
        pair = f"ip saddr {client.ip} ip daddr {server.ip}"
        reject = f"{pair} meta l4proto tcp reject with tcp reset; {pair} reject"
        chain = f"ct state established,related accept; {reject}"
        begin = (
            f"nft 'table ip denied {{ chain forward {{ type filter hook forward priority -1; {chain}; }}; }}'"
        )
        end = "nft delete table ip denied"
    else:
        rules = (
            "-N POLICY",
            "-A POLICY -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
            f"-A POLICY -p tcp -s {client.ip} -d {server.ip} -j REJECT --reject-with tcp-reset",
            f"-A POLICY -s {client.ip} -d {server.ip} -j REJECT",
            "-I FORWARD -j POLICY",
        )
        begin = " && ".join(f"iptables -w {rule}" for rule in rules)
        end = "iptables -w -D FORWARD -j POLICY && iptables -w -F POLICY && iptables -w -X POLICY"
    for node in one.lab.nodes:
        node.run(["sh", "-c", begin])
    try:
        yield
    finally:
        for node in one.lab.nodes:
            node.run(["sh", "-c", end])


def test_which_path_packets_take(served: list[Served]) -> None:
    """Direct traffic goes by BPF; what a service translates stays with the kernel on the client's node."""
    one = served[0]
    client, far = one.lab.pod("n1p2"), one.lab.pod("n3p1")
    for name, to in (("direct", (str(far.ip), PORT)), ("service", (one.web.ip, 80))):
        with (
            watch(one.lab.node("n1")) as near,
            watch(one.lab.node("n3")) as there,
            tcp_client(client, to, 20) as sock,
        ):
            reader = sock.makefile("rb")
            reader.readline()
            assert echoed(sock, reader, 16 << 20)
        mode = one.lab.spec.kube_proxy_mode
        log.info(
            "path: %s | %s | client's node %.0f %% BPF | n3 %.0f %% BPF",
            mode,
            name,
            near.share * 100,
            there.share * 100,
        )
        if name == "direct":
            assert near.share > 0.9
            assert there.share > 0.9
