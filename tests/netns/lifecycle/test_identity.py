"""A node's uplink and address under traffic: additions change nothing, and what goes is followed."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, Node
from tests.netns.labs import MakeLab
from tests.netns.life import stream
from tests.polls import eventually

log = logging.getLogger("figures")

DEFAULT = "default via 192.168.64.254 dev eth0"
DYNAMIC, LASTING = "valid_lft 3600 preferred_lft 3600", "valid_lft forever preferred_lft forever"


@pytest.fixture
def lab(make_lab: MakeLab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    command = Node.daemon_command  # the lab names its uplink; here the default route tells it
    monkeypatch.setattr(
        Node, "daemon_command", lambda *args: [word for word in command(*args) if word != "--iface=eth0"]
    )
    made = make_lab(datapath="ebpf", start_daemons=False)
    for node in made.nodes:
        ip(node, f"route replace {DEFAULT}")
        node.start_daemon()
    made.wait_ready()
    for node in made.nodes:
        node.add_pod()
    made.wait_attached()
    return made


def ip(node: Node, *lines: str) -> None:
    for line in lines:
        node.run(["ip", *line.split()])


def lease(lab: Lab, node: Node) -> dict[str, Any]:
    """Return the node's key as etcd has it, with the revision of its last write."""
    subnet = str(node.subnet).replace("/", "-")
    answer = json.loads(lab.etcdctl("get", f"{lab.spec.etcd_prefix}/subnets/{subnet}", "--write-out=json"))
    return dict(answer["kvs"][0])


def looked_at(node: Node) -> None:
    """Return when the daemon has done a whole pass: it has removed a route that carries its mark."""
    ip(node, "route add 10.1.250.0/24 dev lo proto 251")
    eventually(lambda: "10.1.250.0" not in node.run(["ip", "route"]).stdout, "a pass")


def device(node: Node) -> str:
    return node.run(["ip", "-d", "link", "show", "flannel.1"]).stdout


@contextmanager
def talking(lab: Lab, what: str, may_lose: int) -> Iterator[None]:
    """Packets go both ways in the block, a thousand a second; no more than so many are lost each way."""
    there, back = lab.pod("n1p1"), lab.pod("n2p1")
    with stream(there, back) as out, stream(back, there) as home:
        yield
        for one in (out, home):
            one.lost_yet()
    lost, silence = (out.lost, home.lost), (out.gap, home.gap)
    log.info("%s: lost %d and %d, longest silence %.3f and %.3f s", what, *lost, *silence)
    assert max(lost) <= may_lose


CHANGES = {
    "a VIP beside an address of DHCP": (
        [f"address change 192.168.64.1/24 dev eth0 {DYNAMIC}", "address add 192.168.64.200/32 dev eth0"],
        ["address del 192.168.64.200/32 dev eth0", f"address change 192.168.64.1/24 dev eth0 {LASTING}"],
    ),
    "a VPN's better default route": (
        [
            "link add wg0 type veth peer far",
            "link set wg0 up",
            "link set far up",
            "address add 10.66.0.7/32 dev wg0",
            f"route replace {DEFAULT} metric 100",
            "route add default dev wg0 metric 50",
        ],
        ["link del wg0"],
    ),
    "a second address and its network": (
        ["address add 10.66.0.7/16 dev eth0", "route add 203.0.113.0/24 dev eth0 src 10.66.0.7"],
        ["address del 10.66.0.7/16 dev eth0"],
    ),
}


def test_what_comes_and_goes_beside_the_address_changes_nothing(lab: Lab) -> None:
    node = lab.node("n1")
    before = lease(lab, node)
    for change, (come, go) in CHANGES.items():
        with talking(lab, change, may_lose=0):
            for lines in (come, go):
                ip(node, *lines)
                looked_at(node)
                assert lease(lab, node) == before, change
                assert "local 192.168.64.1 dev eth0" in device(node)


def test_networking_may_be_restarted(lab: Lab) -> None:
    """For a moment the address is away, and a default route of another interface is the only one."""
    node = lab.node("n1")
    ip(node, "link add eth1 type veth peer far", "link set eth1 up", "link set far up")
    ip(node, "address add 10.20.0.5/16 dev eth1", "route add default via 10.20.0.1 metric 900")
    before = lease(lab, node)
    ip(node, "address flush dev eth0")
    gone = "192.168.64.1 is gone from eth0: unless it is back"
    eventually(lambda: gone in node.daemon_log(), "the daemon has seen that it is gone")
    ip(node, "address add 192.168.64.1/24 dev eth0", f"route add {DEFAULT}")
    looked_at(node)
    assert lease(lab, node) == before
    with talking(lab, "after a restart of networking", may_lose=0):
        pass


def test_an_address_that_is_gone_is_followed(lab: Lab) -> None:
    node, other = lab.nodes
    subnet = node.subnet
    # One network with the old address, or that would take the new one along when it goes.
    first, second = "192.168.64.1/24", "192.168.64.101/23"
    for old, new in ((first, second), (second, first)):
        address = new.partition("/")[0]
        with talking(lab, f"from {old} to {new}", may_lose=10_000):
            ip(node, f"address add {new} dev eth0", f"address del {old} dev eth0", f"route replace {DEFAULT}")
            eventually(lambda: f"local {address} " in device(node), "the device")  # noqa: B023 - called here
            fdb = ["bridge", "fdb", "show", "dev", "flannel.1"]
            eventually(lambda: f"dst {address} " in other.run(fdb).stdout, "the peer")  # noqa: B023 - likewise
            lab.wait_attached()
        assert node.subnet == subnet
        with talking(lab, f"with {new}", may_lose=0):
            pass
