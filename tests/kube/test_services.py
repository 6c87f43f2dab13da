"""Services through the real kube-proxy: whatever happens with BPF also happens without, packet for packet.

For each mode of kube-proxy the same things are done in a lab with the fast path and in one whose datapath is
the kernel's, and what clients and pods saw is compared.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import Host, Lab, Pod
from flannel_ebpf.lab.spec import KUBE_PROXY_MODES, SWITCH, UNDERLAYS
from tests.kube.policy import denied
from tests.kube.service_traffic import PORT, Answer, Service, ask, asking, echoed, serving
from tests.netns.labs import MakeLab
from tests.netns.paths import watch
from tests.netns.traffic import tcp_client

log = logging.getLogger("figures")
OVERLAYS = {Family.V4: "flannel.1", Family.V6: "flannel-v6.1"}


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
        return Host("outside", self.lab.spec.switch_ns, *(UNDERLAYS[family][SWITCH] for family in Family))


@pytest.fixture(
    scope="module", params=[pytest.param(it, marks=pytest.mark.xdist_group(it)) for it in KUBE_PROXY_MODES]
)
def served(request: pytest.FixtureRequest, make_kube_lab: MakeLab, programs: Path) -> Iterator[list[Served]]:
    """A lab with the fast path, then one whose datapath is the kernel's."""
    labs = [
        make_kube_lab(
            nodes=3,
            pods_per_node=2,
            family="dual",
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


@pytest.fixture(params=Family, ids=str)
def family(request: pytest.FixtureRequest) -> Family:
    return Family(request.param)


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


def test_cluster_ip(served: list[Served], family: Family) -> None:
    def from_a_pod(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n1p2"), one.web.ips[family], 80, 40))

    def from_a_server(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n1p1"), one.web.ips[family], 80, 40))

    def from_a_node(one: Served) -> list[Answer]:
        return seen(ask(one.lab.node("n1"), one.web.ips[family], 80, 40))

    def by_udp(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n1p2"), one.web.ips[family], 80, 40, "udp"))

    client = str(served[0].lab.pod("n1p2").at(family))
    everybody = [(f"n{number}p1", client) for number in (1, 2, 3)]
    assert same(served, from_a_pod) == everybody
    assert same(served, by_udp) == everybody
    assert [pod for pod, _ in same(served, from_a_server)] == ["n1p1", "n2p1", "n3p1"]
    assert [pod for pod, _ in same(served, from_a_node)] == ["n1p1", "n2p1", "n3p1"]


def test_node_port(served: list[Served], family: Family) -> None:
    def from_outside(one: Served) -> list[Answer]:
        return seen(ask(one.outside, one.lab.node("n1").at(family), one.web.node_port, 40))

    def from_another_nodes_pod(one: Served) -> list[Answer]:
        return seen(ask(one.lab.pod("n2p2"), one.lab.node("n1").at(family), one.web.node_port, 40))

    def from_another_node(one: Served) -> list[Answer]:
        return seen(ask(one.lab.node("n3"), one.lab.node("n1").at(family), one.web.node_port, 40))

    def by_udp_from_outside(one: Served) -> list[Answer]:
        return seen(ask(one.outside, one.lab.node("n2").at(family), one.web.node_port, 40, "udp"))

    for what in (from_outside, from_another_nodes_pod, from_another_node, by_udp_from_outside):
        assert [pod for pod, _ in same(served, what)] == ["n1p1", "n2p1", "n3p1"]


def test_node_port_of_the_local_policy_keeps_the_clients_address(
    served: list[Served], family: Family
) -> None:
    def from_outside(one: Served) -> list[Answer]:
        return seen(ask(one.outside, one.lab.node("n2").at(family), one.local.node_port, 20))

    assert same(served, from_outside) == [("n2p1", str(served[0].outside.at(family)))]


def test_session_affinity(served: list[Served], family: Family) -> None:
    def pods_that_answered_each_client(one: Served) -> list[int]:
        clients = [one.lab.pod("n1p2"), one.lab.pod("n2p2"), one.lab.pod("n3p2")]
        return [len({pod for pod, _ in ask(client, one.sticky.ips[family], 80, 20)}) for client in clients]

    assert same(served, pods_that_answered_each_client) == [1, 1, 1]


def test_a_port_used_for_the_service_and_for_the_pod_itself(served: list[Served], family: Family) -> None:
    """The same client port to the service and to the pod behind it: whose answers may not be mixed up."""

    def in_turns(one: Served) -> list[list[Answer]]:
        client, far = one.lab.pod("n1p2"), one.lab.pod("n3p1")
        turns = []
        for number in range(4):
            for kind in ("tcp", "udp"):
                port = 40000 + number % 2
                turns.append(ask(client, far.at(family), PORT, 1, kind, port))
                turns.append(
                    [
                        (pod.partition("n")[0], peer)
                        for pod, peer in ask(client, one.web.ips[family], 80, 1, kind, port)
                    ]
                )
        return turns

    client = str(served[0].lab.pod("n1p2").at(family))
    turns = same(served, in_turns)
    assert turns[::2] == [[("n3p1", client)]] * 8
    assert turns[1::2] == [[("", client)]] * 8


def test_endpoints_that_change_under_traffic(served: list[Served], family: Family) -> None:
    """Whoever connects meets the endpoints of the moment, and nobody meets none."""

    def changes(one: Served) -> list[list[str]]:
        service, client = one.changing, one.lab.pod("n1p2")
        found, failed = [], Counter[str]()
        for pods in (one.servers, one.servers[1:], one.servers[:1], one.servers[2:], one.servers):
            with asking(client, service.ips[family], failed):
                service.point_to(pods)
            found.append(
                sorted(
                    {
                        pod
                        for kind in ("tcp", "udp")
                        for pod, _ in ask(client, service.ips[family], 80, 40, kind)
                    }
                )
            )
        assert not failed
        return found

    assert same(served, changes) == [
        ["n1p1", "n2p1", "n3p1"], ["n2p1", "n3p1"], ["n1p1"], ["n3p1"], ["n1p1", "n2p1", "n3p1"],
    ]  # fmt: skip


def test_a_connection_outlives_its_endpoint(served: list[Served], family: Family) -> None:
    """kube-proxy lets established TCP connections be; every byte comes back while others go elsewhere."""

    def stays(one: Served) -> tuple[bool, bool]:
        service, client = one.changing, one.lab.pod("n1p2")
        service.point_to(one.servers[2:])
        with tcp_client(client, (str(service.ips[family]), 80), 20) as sock:
            reader = sock.makefile("rb")
            before = json.loads(reader.readline())[0]
            whole = echoed(sock, reader, 4 << 20)
            service.point_to(one.servers[:2])
            others = {pod for pod, _ in ask(client, service.ips[family], 80, 20)} <= {"n1p1", "n2p1"}
            whole = whole and echoed(sock, reader, 4 << 20)
        service.point_to(one.servers)
        return before == "n3p1" and whole, others

    assert same(served, stays) == (True, True)


def test_a_network_policy_beside_kube_proxy(served: list[Served], family: Family) -> None:
    """What is established goes on; nothing new begins, by whatever way the forbidden pod is reached."""

    def forbidden(one: Served) -> list[object]:
        client, far = one.lab.pod("n1p2"), one.lab.pod("n3p1")
        one.web.point_to(one.servers)
        with tcp_client(client, (str(far.at(family)), PORT), 20) as sock:
            reader = sock.makefile("rb")
            reader.readline()
            whole = echoed(sock, reader, 4 << 20)
            with denied(one.lab, family, client, far):
                found: list[object] = [
                    seen(ask(client, far.at(family), PORT, 5)),
                    seen(ask(client, far.at(family), PORT, 5, "udp")),
                    "n3p1" in {pod for pod, _ in ask(client, one.web.ips[family], 80, 40)},
                    seen(ask(one.lab.pod("n2p2"), far.at(family), PORT, 5)),
                    whole and echoed(sock, reader, 4 << 20),
                ]
        return [*found, seen(ask(client, far.at(family), PORT, 5))]

    refused = "failed: ConnectionRefusedError"
    client, other = (str(served[0].lab.pod(name).at(family)) for name in ("n1p2", "n2p2"))
    assert same(served, forbidden) == [
        [(refused, "")], [(refused, "")], False,
        [("n3p1", other)], True, [("n3p1", client)],
    ]  # fmt: skip


def test_which_path_packets_take(served: list[Served], family: Family) -> None:
    """Direct traffic goes by BPF; what a service translates stays with the kernel on the client's node."""
    one = served[0]
    client, far = one.lab.pod("n1p2"), one.lab.pod("n3p1")
    for name, to in (("direct", (str(far.at(family)), PORT)), ("service", (str(one.web.ips[family]), 80))):
        with (
            watch(one.lab.node("n1"), OVERLAYS[family], family) as near,
            watch(one.lab.node("n3"), OVERLAYS[family], family) as there,
            tcp_client(client, to, 20) as sock,
        ):
            reader = sock.makefile("rb")
            reader.readline()
            assert echoed(sock, reader, 16 << 20)
        mode = one.lab.spec.kube_proxy_mode
        log.info(
            "path: %s | %s | %s | client's node %.0f %% BPF | n3 %.0f %% BPF",
            mode,
            family,
            name,
            near.share * 100,
            there.share * 100,
        )
        if name == "direct":
            assert near.share > 0.9
            assert there.share > 0.9
