"""Both families with --kube-subnet-mgr: each is published, followed and taken away for itself."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import Lab, Node
from tests.netns.kube.cluster import NODES, PREFIX, annotate, asked, delete, notes, says
from tests.netns.labs import MakeLab
from tests.netns.life import restart, stream
from tests.netns.traffic import ping
from tests.polls import eventually

DEVICES = {Family.V4: "flannel.1", Family.V6: "flannel-v6.1"}
SUBNETS = {Family.V4: "10.1.66.0/24", Family.V6: "fd10:1:0:66::/64"}
PEER = {
    "kube_subnet_manager": "true",
    "backend_type": "vxlan",
    "public_ip": "192.168.64.66",
    "backend_data": '{"VNI":1,"VtepMAC":"02:00:00:00:04:66"}',
    "public_ipv6": "fd00:64::66",
    "backend_v6_data": '{"VNI":1,"VtepMAC":"02:00:00:00:06:66"}',
}
STATIONS = {
    Family.V4: "02:00:00:00:04:66 dst 192.168.64.66",
    Family.V6: "02:00:00:00:06:66 dst fd00:64::66",
}
"""How the bridge's table names the peer that PEER makes."""


@pytest.fixture(scope="module")
def shared(make_shared_lab: MakeLab, kube_apiserver: str) -> Lab:
    return make_shared_lab(nodes=2, pods_per_node=1, family="dual", kube_apiserver=kube_apiserver)


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """Two nodes that talk in both families, and a third node object without a node: `peer`."""
    made = {PREFIX + key.replace("_", "-"): text for key, text in PEER.items()}
    cidrs = list(SUBNETS.values())
    shared.kube.request(
        "POST",
        NODES,
        {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": "peer", "annotations": made},
            "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        },
    )
    node = shared.node("n1")
    for family, subnet in SUBNETS.items():
        eventually(lambda f=family, s=subnet: route(node, f, s), f"a route to {subnet}")  # type: ignore[misc]  # bound now
        eventually(lambda f=family: STATIONS[f] in fdb(node, f), "this peer's, not the last test's")  # type: ignore[misc]  # bound now
    yield shared
    if any(one["metadata"]["name"] == "peer" for one in shared.kube.request("GET", NODES)["items"]):
        delete(shared, "peer")


def route(node: Node, family: Family, subnet: str) -> str:
    return node.run(["ip", f"-{family.value}", "route", "show", subnet]).stdout


def fdb(node: Node, family: Family) -> str:
    return node.run(["bridge", "fdb", "show", "dev", DEVICES[family]]).stdout


def talk(lab: Lab) -> bool:
    one, two = lab.pods
    return all(ping(one, two.at(family), 5) == 5 for family in Family)


def test_what_a_node_publishes(lab: Lab) -> None:
    assert talk(lab)
    node = lab.node("n1")
    links = {one["ifname"]: one["address"] for one in json.loads(node.run(["ip", "-j", "link"]).stdout)}
    assert notes(lab, "n1") == {
        "kube-subnet-manager": "true",
        "backend-type": "vxlan",
        "public-ip": str(node.ip),
        "backend-data": f'{{"VNI":1,"VtepMAC":"{links["flannel.1"]}"}}',
        "public-ipv6": str(node.ip6),
        "backend-v6-data": f'{{"VNI":1,"VtepMAC":"{links["flannel-v6.1"]}"}}',
    }
    told = node.subnet_file.read_text()
    assert "FLANNEL_SUBNET=10.1.1.1/24" in told
    assert "FLANNEL_IPV6_SUBNET=" in told


def test_a_restart_writes_nothing_and_loses_nothing(lab: Lab) -> None:
    one, two = lab.pods
    mark = len(lab.kube.requests())
    with stream(one, two, 7001) as four, stream(two, one, 7002, family=Family.V6) as six:
        restart(lab.node("n1"))
    assert asked(lab, "n1", mark)["patch nodes/status"] == 0
    assert (four.lost, six.lost) == (0, 0)


@pytest.mark.parametrize("family", [Family.V4, Family.V6])
def test_a_change_of_one_family_counts(lab: Lab, family: Family) -> None:
    """flanneld compares a part of the leases and keeps the old neighbour for ever."""
    node, four = lab.node("n1"), family is Family.V4
    other = fdb(node, Family.V6 if four else Family.V4)
    place = "192.168.64.67" if four else "fd00:64::67"
    mac = "02:00:00:00:00:67"
    data = f'{{"VNI":1,"VtepMAC":"{mac}"}}'
    if four:
        annotate(lab, "peer", public_ip=place, backend_data=data)
    else:
        annotate(lab, "peer", public_ipv6=place, backend_v6_data=data)
    eventually(lambda: f"{mac} dst {place}" in fdb(node, family), "the new entry")
    eventually(lambda: ":66 dst" not in fdb(node, family), "no old entry")
    assert fdb(node, Family.V6 if four else Family.V4) == other
    assert talk(lab)


def test_a_family_that_becomes_unreadable_leaves_the_other_alone(lab: Lab) -> None:
    node = lab.node("n1")
    mark = len(node.daemon_log())
    annotate(lab, "peer", backend_v6_data="{", public_ip="192.168.64.68")
    says(node, "backend-v6-data of node peer is '{'", "what was known before stays", since=mark)
    eventually(lambda: "dst 192.168.64.68" in fdb(node, Family.V4), "the other family's change")
    assert all(route(node, family, subnet) for family, subnet in SUBNETS.items())
    assert talk(lab)


def test_a_node_that_goes_takes_both_families_along(lab: Lab) -> None:
    node = lab.node("n1")
    delete(lab, "peer")
    for family, subnet in SUBNETS.items():
        eventually(lambda f=family, s=subnet: not route(node, f, s), "no route")  # type: ignore[misc]  # bound now
        assert ":66 dst" not in fdb(node, family)
    assert talk(lab)


def test_an_operator_says_both_addresses(lab: Lab) -> None:
    node = lab.node("n1")
    before = notes(lab, "n1")
    annotate(lab, "n1", public_ipv6_overwrite="fd00:64::201")
    eventually(lambda: notes(lab, "n1")["public-ipv6"] == "fd00:64::201", "published")
    eventually(lambda: "dst fd00:64::201" in fdb(lab.node("n2"), Family.V6), "peers use it")
    annotate(lab, "n1", public_ipv6_overwrite=None)
    eventually(lambda: notes(lab, "n1") == before, "its own again", within=60)
    node.run(["ip", "addr", "add", "fd00:64::101/64", "dev", "eth0", "nodad"])
    annotate(lab, "n1", node_public_ipv6="fd00:64::101")
    restart(node)
    assert notes(lab, "n1")["public-ipv6"] == "fd00:64::101"
    assert notes(lab, "n1")["public-ip"] == before["public-ip"]
    annotate(lab, "n1", node_public_ipv6=None)
    restart(node)
    node.run(["ip", "addr", "del", "fd00:64::101/64", "dev", "eth0"])
    eventually(lambda: talk(lab), "pods talk")
