"""The port that gives pods' packets headroom comes and goes with what needs it."""

from __future__ import annotations

import pytest

from flannel_ebpf.lab import Node
from tests.netns.labs import MakeLab
from tests.netns.life import flannel, restart
from tests.polls import eventually


def ports(node: Node) -> list[str]:
    """The devices in the pods' bridge that are no pod's."""
    lines = node.run(["ip", "-br", "link", "show", "master", "cni0"]).stdout.splitlines()
    return [line.split()[0] for line in lines if not line.startswith("veth")]


@pytest.mark.parametrize("backend", ["vxlan", "udp"])
def test_the_pods_bridge_has_one_while_programs_stand(make_lab: MakeLab, backend: str) -> None:
    lab = make_lab(backend=backend, datapath="ebpf")
    node = lab.node("n1")
    eventually(lambda: len(ports(node)) == 1, "the port is there")
    restart(node, "--pod-headroom=false")
    eventually(lambda: ports(node) == [], "the port is gone where nobody wants it")
    restart(node)
    eventually(lambda: len(ports(node)) == 1, "the port is back")
    flannel(node, "down")
    assert ports(node) == []


def test_there_is_none_where_no_header_is_added(make_lab: MakeLab) -> None:
    lab = make_lab(backend="host-gw", datapath="ebpf")
    assert [ports(node) for node in lab.nodes] == [[], []]


def test_there_is_none_beside_the_kernel_path_alone(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="kernel")
    assert [ports(node) for node in lab.nodes] == [[], []]


def test_a_name_that_is_taken_costs_only_the_headroom(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="ebpf")
    node = lab.node("n1")
    eventually(lambda: len(ports(node)) == 1, "the port is there")
    [name] = ports(node)
    node.kill_daemon()
    node.run(["ip", "link", "del", name])
    node.run(["ip", "link", "add", name, "type", "bridge"])
    mark = len(node.daemon_log())
    restart(node)
    eventually(lambda: "get no headroom" in node.daemon_log()[mark:], "the daemon says so")
    lab.wait_ready()
    assert node.daemon_log()[mark:].count("get no headroom") == 1
    assert ports(node) == []
