"""Uplinks of small and changing MTU: everything that depends on it follows at once."""

from __future__ import annotations

import json

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node
from tests.netns.labs import MakeLab
from tests.polls import eventually

OVERHEAD = 50


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf")


def set_mtu(node: Node, mtu: int) -> None:
    node.run(["ip", "link", "set", "eth0", "mtu", str(mtu)])


def device_mtu(node: Node) -> int:
    [link] = json.loads(node.run(["ip", "-json", "link", "show", "flannel.1"]).stdout)
    return int(link["mtu"])


def peers_mtu(node: Node) -> set[int]:
    with Map.open(node.map_path("fl_peers")) as peers:
        return {abi.Peer.unpack(value).mtu for value in peers.items().values()}


def follows(node: Node, mtu: int) -> bool:
    return (device_mtu(node), node.mtu, peers_mtu(node)) == (mtu - OVERHEAD, mtu - OVERHEAD, {mtu})


@pytest.mark.parametrize("mtu", [1400, 1300, 1280, 600, 1500])
def test_a_changed_mtu_reaches_device_maps_and_subnet_env(lab: Lab, mtu: int) -> None:
    node = lab.node("n1")
    set_mtu(node, mtu)
    eventually(lambda: follows(node, mtu), f"everything is of MTU {mtu}")
    assert "accept_ra" not in node.daemon_log()


@pytest.mark.parametrize("mtu", [1329, 1280])
def test_a_node_starts_on_an_uplink_too_small_for_ipv6(lab: Lab, mtu: int) -> None:
    """flannel.1 has no IPv6 below 1280, and so none of its values under /proc/sys."""
    node = lab.node("n2")
    node.stop_daemon()
    node.run(["ip", "link", "delete", "flannel.1"])
    node.subnet_file.unlink()
    set_mtu(node, mtu)
    node.start_daemon()
    eventually(node.subnet_file.exists, "subnet.env is written")
    assert follows(node, mtu)
    assert str(lab.node("n1").subnet) in node.run(["ip", "route"]).stdout
    ping = ["ping", "-c1", "-W1", str(lab.pod("n1p1").ip)]
    eventually(lambda: lab.pod("n2p1").run(ping, check=False).returncode == 0, "pods talk")
