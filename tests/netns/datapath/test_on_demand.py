"""Peers on demand: one route for all, objects for those in use, and no packet lost for it."""

from __future__ import annotations

import json

import pytest

from flannel_ebpf.contract import abi, learned
from flannel_ebpf.contract.enums import Reason
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node
from tests.netns import life
from tests.netns.labs import MakeLab
from tests.netns.traffic import delivered, ping
from tests.polls import eventually

ANY = "169.254.1.1"


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(nodes=3, datapath="ebpf", extra_up_args=("--peers=on-demand",))


def ways(node: Node) -> dict[str, str]:
    """Return destination -> gateway of the routes on the overlay's device."""
    routes = json.loads(node.run(["ip", "-json", "route", "show", "dev", "flannel.1"]).stdout)
    return {one["dst"]: one["gateway"] for one in routes}


def neighbours(node: Node) -> set[str]:
    found = json.loads(
        node.run(["ip", "-json", "neigh", "show", "dev", "flannel.1", "nud", "permanent"]).stdout
    )
    return {one["dst"] for one in found}


def stations(node: Node) -> set[str]:
    found = json.loads(node.run(["bridge", "-json", "fdb", "show", "dev", "flannel.1"]).stdout)
    return {one["dst"] for one in found if "dst" in one}


def to(*nodes: Node) -> dict[str, str]:
    return {str(node.subnet): str(node.subnet.network_address) for node in nodes}


def test_a_peer_gets_objects_when_it_is_sent_to(lab: Lab) -> None:
    n1, n2, n3 = (lab.node(name) for name in ("n1", "n2", "n3"))
    assert ways(n1) == {"10.1.0.0/16": ANY}
    assert (neighbours(n1), stations(n1)) == ({ANY}, set())
    assert delivered(n1.pods[0], n2.pods[0]) == 100
    eventually(lambda: ways(n1) == {"10.1.0.0/16": ANY, **to(n2)}, "the peer in use has a route")
    said = "peers     2 (1 in use, the others on demand), pods 2"
    eventually(lambda: said in life.flannel(n1, "status"), "status says so")
    assert neighbours(n1) == {ANY, str(n2.subnet.network_address)}
    assert len(stations(n1)) == 1
    assert str(n3.subnet) not in ways(n1)


def test_a_peer_that_nobody_sent_to_can_be_probed(lab: Lab) -> None:
    n1, n3 = lab.node("n1"), lab.node("n3")
    assert str(n3.subnet) not in ways(n1)
    said = life.flannel(n1, "probe", str(n3.subnet))
    assert [line.split()[0] for line in said.splitlines() if line.endswith(" ok")] == [str(n3.subnet)]


def test_nobody_need_answer_for_a_first_contact(lab: Lab) -> None:
    """The daemon is dead: datagrams, fragments and echoes reach a peer that was never sent to."""
    n2, n3 = lab.node("n2"), lab.node("n3")
    assert str(n3.subnet) not in ways(n2)
    n2.kill_daemon()
    try:
        pod, far = n2.pods[0], n3.pods[0]
        assert delivered(pod, far) == 100
        assert delivered(pod, n3.pods[1], count=20, size=8000) == 20
        assert ping(pod, str(far.ip), count=3) == 3
        assert ping(n2, str(far.ip), count=3) == 3, "from the node itself"
        assert str(n3.subnet) not in ways(n2)
    finally:
        n2.start_daemon()
    life.ready(n2)


def test_an_address_of_nobody_is_a_counted_drop(lab: Lab) -> None:
    n1 = lab.node("n1")
    mine = {str(node.subnet.network_address) for node in lab.nodes}
    nobody = next(
        it for it in (f"10.1.{n}.9" for n in range(2, 250)) if f"{it.rpartition('.')[0]}.0" not in mine
    )
    before = dropped(n1)
    assert ping(n1.pods[0], nobody, count=2) == 0
    assert dropped(n1) >= before + 2


def dropped(node: Node) -> int:
    with Map.open(node.map_path("fl_reasons")) as reasons:
        sums = reasons.sums([abi.pack_u32(Reason.DROP_NO_PEER)])
    return learned.Count.unpack(sums[abi.pack_u32(Reason.DROP_NO_PEER)]).to_peer


def test_a_restart_keeps_the_peers_in_use(lab: Lab) -> None:
    n1, n2 = lab.node("n1"), lab.node("n2")
    with life.stream(n1.pods[0], n2.pods[1]) as sent:
        eventually(lambda: str(n2.subnet) in ways(n1), "the peer in use has a route")
        life.restart(n1, kill=True)
        assert str(n2.subnet) in ways(n1)
    assert sent.lost == 0


def test_there_and_back_without_loss(lab: Lab) -> None:
    n1, n2, n3 = (lab.node(name) for name in ("n1", "n2", "n3"))
    with life.stream(n1.pods[0], n3.pods[0]) as out, life.stream(n2.pods[0], n1.pods[1]) as back:
        life.restart(n1, "--peers=all")
        eventually(lambda: ways(n1) == to(n2, n3), "every peer has a route, and no other is left")
        assert ANY not in neighbours(n1)
        life.restart(n1, "--peers=on-demand")
        eventually(lambda: "10.1.0.0/16" in ways(n1), "the network has its route")
    assert (out.lost, back.lost) == (0, 0)


def test_down_leaves_a_way_to_every_peer(lab: Lab) -> None:
    """As flanneld's own: it may come next, and until it has, packets go on."""
    n1, n2, n3 = (lab.node(name) for name in ("n1", "n2", "n3"))
    n1.stop_daemon()
    life.flannel(n1, "down")
    assert ways(n1) == to(n2, n3)
    assert neighbours(n1) == {str(node.subnet.network_address) for node in (n2, n3)}
    assert delivered(n1.pods[0], n3.pods[1]) == 100
    n1.start_daemon()
    life.ready(n1)


def test_where_programs_cannot_run_every_peer_has_objects(lab: Lab) -> None:
    n3 = lab.node("n3")
    said = life.restart(n3, "--fastpath=off")
    assert (
        "--peers=on-demand: every peer has kernel objects, because no programs are in use that know" in said
    )
    assert ways(n3) == to(lab.node("n1"), lab.node("n2"))
