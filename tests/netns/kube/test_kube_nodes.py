"""Daemons with --kube-subnet-mgr: what they write and ask, whom they follow, what bad input does to them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from flannel_ebpf.lab import Lab, Node
from tests.netns.faults.fault_lab import pinging
from tests.netns.kube.cluster import (
    NODES,
    add_node,
    add_peer,
    annotate,
    asked,
    delete,
    has_route,
    kill_server,
    lines,
    notes,
    says,
)
from tests.netns.labs import MakeLab
from tests.netns.life import restart
from tests.netns.traffic import ping
from tests.polls import eventually


@pytest.fixture(scope="module")
def shared(make_shared_lab: MakeLab, kube_apiserver: str) -> Lab:
    return make_shared_lab(nodes=2, pods_per_node=1, datapath="ebpf", kube_apiserver=kube_apiserver)


@pytest.fixture
def lab(shared: Lab) -> Iterator[Lab]:
    """Two nodes that talk; node objects that a test adds are removed."""
    yield shared
    if shared.kube.process is None:
        shared.kube.start()
    for node in shared.kube.request("GET", NODES)["items"]:
        if node["metadata"]["name"] not in ("n1", "n2"):
            delete(shared, node["metadata"]["name"])


def first(lab: Lab) -> Node:
    return lab.node("n1")


def talk(lab: Lab) -> bool:
    one, two = lab.pods
    return ping(one, two.ip, 5) == 5


def test_what_a_node_publishes(lab: Lab) -> None:
    assert talk(lab)
    node = first(lab)
    assert str(node.subnet) == "10.1.1.0/24"
    mac = json.loads(node.run(["ip", "-json", "link", "show", "flannel.1"]).stdout)[0]["address"]
    assert notes(lab, "n1") == {
        "backend-data": f'{{"VNI":1,"VtepMAC":"{mac}"}}',
        "backend-type": "vxlan",
        "kube-subnet-manager": "true",
        "public-ip": "192.168.64.1",
    }
    [condition] = conditions(lab, "n1")
    assert (condition["status"], condition["reason"]) == ("False", "FlannelIsUp")
    assert condition["message"] == "Flannel is running on this node"


def conditions(lab: Lab, name: str) -> list[dict[str, str]]:
    status = lab.kube.request("GET", f"{NODES}/{name}")["status"]
    return [one for one in status.get("conditions", ()) if one["type"] == "NetworkUnavailable"]


def test_what_a_restart_asks_for(lab: Lab) -> None:
    """Everything is as it should be, so nothing is written."""
    node = first(lab)
    mark = len(lab.kube.requests())
    restart(node)
    eventually(lambda: asked(lab, "n1", mark)["watch nodes"], "a watch")
    assert asked(lab, "n1", mark) == {"get nodes": 1, "list nodes": 1, "watch nodes": 1}


def test_a_peer_comes_changes_and_goes(lab: Lab) -> None:
    node = first(lab)
    subnet = add_peer(lab, 50)
    eventually(lambda: has_route(node, subnet), "a route")
    mark = len(lab.kube.requests())
    annotate(lab, "peer50", public_ip="192.168.64.51", backend_data='{"VNI":1,"VtepMAC":"02:00:00:00:00:51"}')
    eventually(lambda: "02:00:00:00:00:51 dst 192.168.64.51" in fdb(node), "the new entry")
    eventually(lambda: "02:00:00:00:00:32" not in fdb(node), "no old entry: flanneld leaves it")
    delete(lab, "peer50")
    eventually(lambda: not has_route(node, subnet), "no route")
    assert "02:00:00:00:00:51" not in fdb(node)
    assert not asked(lab, "n1", mark), "others' changes cost no request"
    assert talk(lab)


def fdb(node: Node) -> str:
    return node.run(["bridge", "fdb", "show", "dev", "flannel.1"]).stdout


def test_what_vanished_while_no_daemon_ran_is_removed(lab: Lab) -> None:
    node = first(lab)
    subnet = add_peer(lab, 60)
    eventually(lambda: has_route(node, subnet), "a route")
    node.stop_daemon()
    delete(lab, "peer60")
    mark = len(node.daemon_log())
    node.start_daemon()
    says(node, "ready:", since=mark)
    eventually(lambda: not has_route(node, subnet), "the route of a peer that left is gone")


def test_nodes_that_are_no_peers_are_one_line_each(lab: Lab) -> None:
    node = first(lab)
    mark = len(node.daemon_log())
    good = {"kube_subnet_manager": "true", "backend_type": "vxlan", "public_ip": "192.168.64.70"}
    data = '{"VNI":1,"VtepMAC":"02:00:00:00:00:70"}'
    add_node(lab, "no-annotations", "10.1.70.0/24")
    add_node(lab, "no-cidr", None, **good, backend_data=data)
    add_node(lab, "no-address", "10.1.71.0/24", **{**good, "public_ip": "here"}, backend_data=data)
    add_node(lab, "no-json", "10.1.72.0/24", **good, backend_data="{")
    add_node(
        lab, "foreign-backend", "10.1.73.0/24", **{**good, "backend_type": "wireguard"}, backend_data=data
    )
    add_node(
        lab, "foreign-vni", "10.1.74.0/24", **good, backend_data='{"VNI":7,"VtepMAC":"02:00:00:00:00:74"}'
    )
    add_node(lab, "outside", "10.99.0.0/24", **good, backend_data=data)
    add_node(lab, "ours", "10.1.1.0/24", **good, backend_data=data)
    subnet = add_peer(lab, 75)
    eventually(lambda: has_route(node, subnet), "the good one has a route")
    says(node, "no-cidr", "no IPv4 podCIDR", since=mark)
    says(node, "10.1.71.0/24", "public-ip of node no-address is 'here'", since=mark)
    says(node, "10.1.72.0/24", "backend-data of node no-json is '{'", since=mark)
    says(node, "10.1.73.0/24", "BackendType 'wireguard' is not vxlan", since=mark)
    says(node, "10.1.74.0/24", "VNI 7", since=mark)
    says(node, "10.99.0.0/24", "outside the network 10.1.0.0/16", since=mark)
    says(node, "node ours", "node n1 has the same podCIDR", since=mark)
    for subnet in (
        "10.1.70.0/24",
        "10.1.71.0/24",
        "10.1.72.0/24",
        "10.1.73.0/24",
        "10.1.74.0/24",
        "10.99.0.0/24",
    ):
        assert lines(node, subnet, mark) <= 1
        assert not has_route(node, subnet)
    assert "Traceback" not in node.daemon_log()
    assert talk(lab)


def test_annotations_that_become_unreadable_lose_no_peer(lab: Lab) -> None:
    node = first(lab)
    before = notes(lab, "n2")
    mark = len(node.daemon_log())
    annotate(lab, "n2", public_ip="here")
    try:
        says(lab.node("n2"), "writing its public-ip")  # its own daemon puts it right at once
    finally:
        eventually(lambda: notes(lab, "n2") == before, "put right")
    subnet = add_peer(lab, 80)
    eventually(lambda: has_route(node, subnet), "a route")
    annotate(lab, "peer80", public_ip="here")
    says(node, "public-ip of node peer80 is 'here'", "what was known before stays", since=mark)
    assert has_route(node, subnet)
    annotate(lab, "peer80", public_ip="192.168.64.81")
    eventually(lambda: "dst 192.168.64.81" in fdb(node), "readable again")
    assert talk(lab)


def test_our_annotations_are_put_right(lab: Lab) -> None:
    before = notes(lab, "n1")
    annotate(lab, "n1", backend_data=None, public_ip="192.168.64.99")
    eventually(lambda: notes(lab, "n1") == before, "as they were")
    says(first(lab), "node n1: writing its backend-data, public-ip")


def test_an_operator_overwrites_the_public_address(lab: Lab) -> None:
    annotate(lab, "n1", public_ip_overwrite="192.168.64.201")
    eventually(lambda: notes(lab, "n1")["public-ip"] == "192.168.64.201", "published")
    eventually(lambda: "dst 192.168.64.201" in fdb(lab.node("n2")), "peers use it")
    annotate(lab, "n1", public_ip_overwrite="here")
    says(first(lab), "annotation public-ip-overwrite: 'here' cannot be used: an IPv4 address")
    assert notes(lab, "n1")["public-ip"] == "192.168.64.201"
    annotate(lab, "n1", public_ip_overwrite=None)
    eventually(lambda: notes(lab, "n1")["public-ip"] == "192.168.64.1", "its own again", within=60)
    eventually(lambda: talk(lab), "pods talk")


def test_an_operator_says_what_a_nodes_address_is(lab: Lab) -> None:
    node = first(lab)
    node.run(["ip", "addr", "add", "192.168.64.101/24", "dev", "eth0"])
    annotate(lab, "n1", node_public_ip="192.168.64.101")
    said = restart(node)
    assert "for public IP 192.168.64.101 on eth0" in said
    assert notes(lab, "n1")["public-ip"] == "192.168.64.101"
    eventually(lambda: talk(lab), "pods talk")
    annotate(lab, "n1", node_public_ip=None)
    restart(node)
    assert notes(lab, "n1")["public-ip"] == "192.168.64.1"
    node.run(["ip", "addr", "del", "192.168.64.101/24", "dev", "eth0"])
    eventually(lambda: talk(lab), "pods talk")


def test_the_server_may_be_away(lab: Lab) -> None:
    """Traffic goes on, a restarted daemon keeps what there is, and afterwards all is followed again."""
    node = first(lab)
    one, two = lab.pods
    with pinging(one, two) as lost:
        kill_server(lab)
        says(node, "the nodes are not watched, what is known of them stays")
        mark = len(node.daemon_log())
        node.stop_daemon()
        node.start_daemon()
        says(node, "Connection refused", since=mark)
        lab.kube.start()
        subnet = add_peer(lab, 90)
        says(node, "ready:", since=mark)
        eventually(lambda: has_route(node, subnet), "a new peer", within=60)
        eventually(lambda: has_route(lab.node("n2"), subnet), "on a node that was not restarted", within=60)
    assert lost.lost == 0


def test_a_right_that_is_missing_is_named_and_nothing_is_lost(lab: Lab) -> None:
    node = first(lab)
    mark = len(node.daemon_log())
    one, two = lab.pods
    with pinging(one, two) as lost:
        node.stop_daemon()
        node.start_daemon((f"--kubeconfig-file={lab.spec.kube_folder / 'nobody.kubeconfig'}",))
        says(node, 'User "nobody" cannot get resource "nodes"', since=mark)
        node.stop_daemon()
        node.start_daemon()
        says(node, "ready:", since=mark)
    assert lost.lost == 0
    assert lines(node, 'User "nobody"', mark) == 1


@pytest.mark.parametrize(
    ("text", "says_what"),
    [
        ("{", "a JSON object such as"),
        ('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan", "VNI": "x"}}', "Backend.VNI"),
        (
            '{"Network": "10.2.0.0/16", "Backend": {"Type": "vxlan"}}',
            "podCIDR 10.1.1.0/24 of node n1 is outside the network 10.2.0.0/16",
        ),
        (None, "No such file"),
    ],
)
def test_a_bad_net_conf_waits_and_says_so(lab: Lab, text: str | None, says_what: str) -> None:
    node = first(lab)
    path = lab.spec.kube_folder / "bad.json"
    path.unlink(missing_ok=True)
    if text is not None:
        path.write_text(text)
    mark = len(node.daemon_log())
    node.stop_daemon()
    node.start_daemon((f"--net-config-path={path}",))
    says(node, says_what, since=mark)
    node.stop_daemon()
    node.start_daemon()
    says(node, "ready:", since=mark)
    assert "Traceback" not in node.daemon_log()
    assert talk(lab)


def test_what_an_operators_commands_say(lab: Lab) -> None:
    """They find the API server by the daemon's report, as the node that it serves."""
    node = first(lab)
    told = json.loads(flannel_ebpf(node, "status", "--json"))
    assert told[0]["kube"]["node"] == "n1"
    assert told[0]["etcd"]["endpoints"] == []
    assert not told[0]["reservation"]
    rows = {
        row["subnet"]: row for row in json.loads(flannel_ebpf(node, "leases", "--json"))["leases"]["leases"]
    }
    assert {subnet: (row["own"], row["expires_in"]) for subnet, row in rows.items()} == {
        "10.1.1.0/24": (True, None),
        "10.1.2.0/24": (False, None),
    }
    assert "etcd" not in flannel_ebpf(node, "doctor")


def flannel_ebpf(node: Node, *words: str) -> str:
    """Run a command with no flag but that of the state's folder, as in a shell of the daemon's pod."""
    places = (
        f"--state-dir={node.state_dir}",
        f"--bpf-pin-root={node.pin_root}",
        f"--subnet-file={node.subnet_file}",
    )
    line = ["env", "-u", "NODE_NAME", sys.executable, "-m", "flannel_ebpf", words[0], *places, *words[1:]]
    return node.run(line, check=False).stdout


def test_down_makes_the_others_forget_a_node(lab: Lab) -> None:
    one, two = lab.node("n1"), lab.node("n2")
    flannel_ebpf(two, "down", "--release", "--purge")
    assert notes(lab, "n2") == {}
    eventually(lambda: not has_route(one, "10.1.2.0/24"), "n1 has no route any more")
    mark = len(two.daemon_log())
    two.start_daemon()
    says(two, "ready:", since=mark)
    eventually(lambda: talk(lab), "pods talk")


def test_a_node_without_podcidr_waits_for_it(lab: Lab) -> None:
    node = lab.node("n2")
    node.stop_daemon()
    delete(lab, "n2")
    add_node(lab, "n2", None)
    mark = len(node.daemon_log())
    node.start_daemon()
    says(node, "node n2 has no podCIDR yet: kube-controller-manager gives one", since=mark)
    lab.kube.request(
        "PATCH", f"{NODES}/n2", {"spec": {"podCIDR": "10.1.2.0/24", "podCIDRs": ["10.1.2.0/24"]}}
    )
    says(node, "ready:", since=mark)
    assert lines(node, "podCIDR yet", mark) == 1
    eventually(lambda: talk(lab), "pods talk")


def test_a_node_that_is_made_anew_is_annotated_anew(lab: Lab) -> None:
    """kubectl delete node, and the kubelet registers again: flanneld would write nothing until restarted."""
    before = notes(lab, "n1")
    one, two = lab.pods
    with pinging(one, two) as lost:
        delete(lab, "n1")
        says(first(lab), "node n1 is gone from")
        lab.kube.add_node("n1")
        eventually(lambda: notes(lab, "n1") == before, "annotations")
        eventually(lambda: conditions(lab, "n1"), "the condition")
    assert lost.lost <= 100, "the other node lets its lease linger for a second, and then the node is gone"
    eventually(lambda: talk(lab), "pods talk")


def test_another_podcidr_ends_the_daemon(lab: Lab) -> None:
    node = lab.node("n2")
    process = node.daemon
    assert process
    delete(lab, "n2")
    add_node(lab, "n2", "10.1.22.0/24")
    assert process.wait(60), node.log_tail()
    assert "node n2 has podCIDR 10.1.22.0/24 now; ours was 10.1.2.0/24" in node.daemon_log()
    delete(lab, "n2")
    lab.kube.add_node("n2")
    mark = len(node.daemon_log())
    node.start_daemon()
    says(node, "ready:", since=mark)
    assert node.subnet.network_address == IPv4Address("10.1.2.0")
    eventually(lambda: talk(lab), "pods talk")
