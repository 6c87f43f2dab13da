"""Real flanneld and us in one cluster: who asks what, and nodes that change sides under traffic."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab, Node
from tests.interop.flanneld import Flanneld
from tests.netns.kube.cluster import add_peer, annotate, asked, delete, has_route, notes
from tests.netns.labs import MakeLab
from tests.netns.life import Delivery, chat, ready, stream
from tests.netns.traffic import ping
from tests.polls import eventually

log = logging.getLogger("figures")
ARGUMENTS = ("--ip-masq",)


@pytest.fixture(params=["vxlan-4", "host-gw-4", "vxlan-dual"])
def lab(request: pytest.FixtureRequest, make_lab: MakeLab, programs: Path) -> Lab:
    backend, _, family = request.param.rpartition("-")
    return make_lab(
        nodes=3, start_daemons=False, pods_per_node=1, backend=backend, family=family,
        extra_up_args=ARGUMENTS, kube_apiserver=str(programs / "kube-apiserver"),
    )  # fmt: skip


def flanneld_on(flanneld: Path, node: Node) -> Flanneld:
    theirs = Flanneld(flanneld, node, *ARGUMENTS)
    theirs.start()
    return theirs


def ours_on(node: Node) -> None:
    mark = len(node.daemon_log())
    node.start_daemon()
    ready(node, mark)


def all_talk(lab: Lab) -> bool:
    pairs = [(one, two) for one in lab.pods for two in lab.pods if one is not two]
    return all(ping(one, two.at(family), 5) == 5 for one, two in pairs for family in lab.spec.families)


def test_a_mixed_cluster(lab: Lab, flanneld: Path) -> None:
    n1, n2, n3 = lab.nodes
    flanneld_on(flanneld, n2)
    flanneld_on(flanneld, n3)
    ours_on(n1)
    lab.add_pods()
    eventually(lambda: all_talk(lab), "every pod reaches every other", within=30)
    assert essence(notes(lab, "n1")) == essence(notes(lab, "n2"))
    assert conditions(lab, "n1") == conditions(lab, "n2")


def essence(found: dict[str, str]) -> dict[str, str]:
    """A node's annotations without what is its own: the addresses and the MACs."""
    own = {key: "" for key in found if key.startswith("public-ip")}
    data = {key: text[: text.find("VtepMAC")] for key, text in found.items() if key.endswith("-data")}
    return {**found, **own, **data}


def conditions(lab: Lab, name: str) -> list[tuple[str, ...]]:
    found = lab.kube.request("GET", f"/api/v1/nodes/{name}")["status"]["conditions"]
    return [tuple(one[key] for key in ("type", "status", "reason", "message")) for one in found]


def test_nodes_that_change_sides_under_traffic(lab: Lab, flanneld: Path) -> None:
    """Node by node from flanneld to us and back; between the pods of the others and its own runs traffic."""
    theirs = {node.name: flanneld_on(flanneld, node) for node in lab.nodes}
    lab.add_pods()
    eventually(lambda: all_talk(lab), "flanneld's cluster talks", within=30)
    before = {node.name: notes(lab, node.name) for node in lab.nodes}

    def to_us(node: Node) -> None:
        theirs[node.name].stop()
        ours_on(node)
        lab.wait_attached([node])

    def back(node: Node) -> None:
        node.stop_daemon()
        theirs[node.name].start()

    for name, change in (("flanneld to us", to_us), ("us to flanneld", back)):
        rolled(lab, name, change)
        assert {node.name: notes(lab, node.name) for node in lab.nodes} == before, "nothing was written anew"
        eventually(lambda: all_talk(lab), "all talk", within=30)


def rolled(lab: Lab, name: str, change: Callable[[Node], None]) -> None:
    """Change each node in turn under two streams and a connection; nothing may be lost."""
    one, two, three = lab.pods
    with ExitStack() as stack:
        streams: list[Delivery] = [
            stack.enter_context(stream(one, two, 7001)),
            stack.enter_context(stream(three, one, 7002, family=lab.spec.families[-1])),
        ]
        talk = stack.enter_context(chat(two, three, 7003))
        for node in lab.nodes:
            change(node)
    sent, lost = sum(it.sent for it in streams), sum(it.lost for it in streams)
    log.info(
        "switch: %s | %s | %d sent | %d lost | longest gap %.0f ms | %d answers",
        lab.spec.backend, name, sent, lost, max(it.gap for it in streams) * 1000, talk.answers,
    )  # fmt: skip
    assert lost == 0
    assert talk.answers > 10


@pytest.mark.parametrize("lab", ["vxlan-4", "host-gw-4"], indirect=True)
def test_what_each_asks_the_api_server(lab: Lab, flanneld: Path) -> None:
    """Requests by verb, from the audit log: at starts, and when a peer comes, changes and goes."""
    ours, far, _ = lab.nodes
    theirs = Flanneld(flanneld, far, *ARGUMENTS)
    for name, who, start, stop in (
        ("n1", "flannel-ebpf", partial(ours_on, ours), ours.stop_daemon),
        ("n2", "flanneld", theirs.start, theirs.stop),
    ):
        for what in ("first start", "restart"):
            told(lab, name, who, what, start)
            if what == "first start":
                stop()
        subnet = ""

        def come() -> None:
            nonlocal subnet
            subnet = add_peer(lab, 90)
            if lab.spec.backend == "vxlan":
                eventually(lambda: has_route(lab.node(name), subnet), "a route")  # noqa: B023 - called here

        told(lab, name, who, "a peer comes", come)
        told(lab, name, who, "a peer changes", lambda: annotate(lab, "peer90", public_ip="192.168.64.91"))
        told(lab, name, who, "a peer goes", lambda: delete(lab, "peer90"))
        stop()


def told(lab: Lab, name: str, who: str, what: str, do: Callable[[], object]) -> Counter[str]:
    """Do something, wait until the log is calm, and say which requests of that node it cost."""
    mark = len(lab.kube.requests())
    do()
    calm(lab)
    found = asked(lab, name, mark)
    log.info(
        "asked: %s | %s | %s", who, what, ", ".join(f"{count} {it}" for it, count in sorted(found.items()))
    )
    if who == "flannel-ebpf":
        assert found == EXPECTED[what]
    return found


EXPECTED: dict[str, dict[str, int]] = {
    "first start": {
        "get nodes": 1, "patch nodes/status": 2, "list nodes": 1, "watch nodes": 1,
    },
    "restart": {"get nodes": 1, "list nodes": 1, "watch nodes": 1},
    "a peer comes": {},
    "a peer changes": {},
    "a peer goes": {},
}  # fmt: skip


def calm(lab: Lab) -> None:
    """Wait until the agents have asked nothing for a second."""
    last = [-1, 0.0]

    def quiet() -> bool:
        now = len(lab.kube.requests())
        last[1] = last[1] + 1 if now == last[0] else 0
        last[0] = now
        return last[1] >= 8

    eventually(quiet, "the audit log is calm", within=20)
