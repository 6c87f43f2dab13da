"""The way to a peer's public address is the kernel's to choose: BPF goes by the uplink or not at all."""

from __future__ import annotations

import pytest

from flannel_ebpf.contract.abi import Peer
from flannel_ebpf.contract.enums import Hook, Mode, Reason
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.counters import device_packets, reasons
from tests.netns.labs import MakeLab
from tests.netns.life import stream
from tests.polls import eventually

FAST = (Hook.FROM_POD, Reason.FAST_VXLAN)


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    """Two nodes with a second cable between them, as a VPN or a second NIC would be."""
    lab = make_shared_lab(datapath="ebpf", extra_up_args=("--revalidate=1",))
    one, two = lab.nodes
    one.run(["ip", "link", "add", "vpn0", "type", "veth", "peer", "name", "vpn0", "netns", two.ns])
    for node, address in ((one, "172.31.0.1/24"), (two, "172.31.0.2/24")):
        node.run(["ip", "address", "add", address, "dev", "vpn0"])
        node.run(["ip", "link", "set", "vpn0", "up"])
        node.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.vpn0.rp_filter=0"])
    return lab


def carried(node: Node) -> int:
    return reasons(node)[FAST]


def modes(node: Node) -> set[Mode]:
    with Map.open(node.map_path("fl_peers")) as peers:
        return {Peer.unpack(value).mode for value in peers.items().values()}


ELSEWHERE = {
    "route": ["ip route add {peer} via 172.31.0.2 dev vpn0"],
    "source rule": [
        "ip route add default via 172.31.0.2 dev vpn0 table 100",
        "ip rule add from {own} lookup 100 priority 100",
    ],
}
BACK = {
    "route": ["ip route del {peer} via 172.31.0.2 dev vpn0"],
    "source rule": ["ip rule del priority 100", "ip route flush table 100"],
}


@pytest.mark.parametrize("kind", list(ELSEWHERE))
def test_packets_go_where_the_kernel_routes_them(lab: Lab, kind: str) -> None:
    node, peer = lab.nodes
    places = {"peer": str(peer.ip), "own": str(node.ip)}
    with stream(lab.pod("n1p1"), lab.pod("n2p1")) as delivery:
        start = carried(node)
        delivery.more(200)
        assert carried(node) > start, "BPF carries it by the uplink"
        for command in ELSEWHERE[kind]:
            node.run(command.format(**places).split())
        eventually(lambda: modes(node) == {Mode.NONE}, "the peer is the kernel's alone")
        before, cable = carried(node), device_packets(node, "vpn0")
        delivery.more(300)
        assert carried(node) == before
        assert device_packets(node, "vpn0") - cable >= 250
        for command in BACK[kind]:
            node.run(command.format(**places).split())
        eventually(lambda: modes(node) == {Mode.VXLAN}, "BPF may have it again")
        before = carried(node)
        delivery.more(300)
        assert carried(node) > before


def test_a_blackhole_route_stops_bpf_too(lab: Lab) -> None:
    node, peer = lab.nodes
    with stream(lab.pod("n1p1"), lab.pod("n2p1")) as delivery:
        node.run(["ip", "route", "add", "blackhole", f"{peer.ip}/32"])
        eventually(lambda: modes(node) == {Mode.NONE}, "the peer is the kernel's alone")
        node.run(["ip", "route", "del", "blackhole", f"{peer.ip}/32"])
        eventually(lambda: modes(node) == {Mode.VXLAN}, "BPF may have it again")
        delivery.more(100)
    assert delivery.lost > 0, "the kernel's way was stopped, and BPF did not go around it"
