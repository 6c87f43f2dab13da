"""Devices that stock kernels have: ways to a peer, uplinks, services and pods that are not veth."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from flannel_ebpf.contract.abi import Peer
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node, netns
from flannel_ebpf.lab.counters import device_packets, reasons
from flannel_ebpf.lab.host import Host
from tests.kernels.test_nodes import SLOW, pair_of, start
from tests.netns import kinds
from tests.netns.kinds import SERVICE, both
from tests.netns.labs import MakeLab
from tests.netns.paths import FAST
from tests.netns.traffic import connection, delivered, pump, transfer
from tests.polls import eventually

INSIDE = Path(__file__).with_name("inside.py")
SOME = 1 << 20


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return start(make_shared_lab)


def make(node: Node, *arguments: object) -> str:
    return node.run([sys.executable, str(INSIDE), *map(str, arguments)], timeout=SLOW).stdout.strip()


def second_address(node: Node) -> str:
    """An address beside the public one: tunnels to the public one need another way themselves."""
    return f"192.168.65.{int(node.ip) & 0xFF}"


def wireguard(one: Node, two: Node) -> None:
    keys = {
        node: make(node, "wireguard", "tun9", base64.b64encode(os.urandom(32)).decode(), 51820)
        for node in (one, two)
    }
    for node, other in ((one, two), (two, one)):
        make(node, "peer", "tun9", keys[other], second_address(other), 51820, f"{other.ip}/32")


def ipip(one: Node, two: Node) -> None:
    for node, other in ((one, two), (two, one)):
        ends = ["local", second_address(node), "remote", second_address(other)]
        node.run(["ip", "link", "add", "tun9", "type", "ipip", *ends])


@contextmanager
def tunnel(one: Node, two: Node, kind: Callable[[Node, Node], None]) -> Iterator[None]:
    """Let the nodes' public addresses be reached through devices called tun9 while the block runs."""
    with ExitStack() as stack:
        for node in (one, two):
            command = [second_address(node) + "/24", "dev", "eth0"]
            node.run(["ip", "address", "add", *command])
            stack.callback(node.run, ["ip", "address", "del", *command])
        kind(one, two)
        for node, other in ((one, two), (two, one)):
            node.run(["ip", "link", "set", "tun9", "up"])
            stack.callback(node.run, ["ip", "link", "del", "tun9"])
            node.run(["ip", "route", "add", str(other.ip), "dev", "tun9", "src", str(node.ip)])
        yield


def modes(node: Node) -> set[Mode]:
    with Map.open(node.map_path("fl_peers")) as peers:
        return {Peer.unpack(value).mode for value in peers.items().values()}


def fast(node: Node) -> int:
    counted = reasons(node)
    return sum(number for (_, reason), number in counted.items() if reason in FAST)


@pytest.mark.parametrize("kind", [wireguard, ipip])
def test_a_peer_behind_another_tunnel_is_the_kernels(lab: Lab, kind: Callable[[Node, Node], None]) -> None:
    pair = pair_of(lab)
    one, two = lab.nodes
    with tunnel(one, two, kind):
        for node in lab.nodes:
            eventually(lambda node=node: modes(node) == {Mode.NONE}, "the peer is the kernel's alone", 60)
        before, through = [fast(node) for node in lab.nodes], device_packets(one, "tun9")
        for node in lab.nodes:
            node.run(["sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.tun9.rp_filter=0"])
        assert delivered(pair.client, pair.server, 200) == 200
        transfer(pair.client, pair.server, SOME)
        assert device_packets(one, "tun9") - through > 200
        assert [fast(node) for node in lab.nodes] == before
    for node in lab.nodes:
        eventually(lambda node=node: modes(node) == {Mode.VXLAN}, "BPF may have it again", 60)
    seen = kinds.small_udp(pair)
    assert all(node.fast for node in seen)


def test_an_ipvs_service(lab: Lab) -> None:
    """As kube-proxy in ipvs mode: the address is the node's own, the endpoint a pod of another node."""
    pair, (address, port) = pair_of(lab), SERVICE
    node = pair.sender
    node.run(["ip", "link", "add", "kube-ipvs0", "type", "dummy"])
    node.run(["ip", "address", "add", f"{address}/32", "dev", "kube-ipvs0"])
    node.run(["modprobe", "ip_vs"])  # 5.10 does not load it because somebody asks for it
    make(node, "ipvs", address, port, pair.server.ip, 5001)
    node.run(["sysctl", "-qw", "net.ipv4.vs.conntrack=1"])
    with connection(pair.client, pair.server, SERVICE, 5001) as (near, far), both(pair) as seen:
        pump(near, far, SOME)
        pump(far, near, SOME)
    assert far.fileno() == -1
    assert seen[0].reasons


@pytest.fixture
def netkit_pod(lab: Lab) -> Iterator[Host]:
    """A pod behind a netkit device of the L3 kind, wired as CNI's ptp plugin wires a veth."""
    node, ns = lab.node("n1"), f"{lab.spec.name}-netkit"
    ip = node.subnet[200]
    netns.create([ns])
    node.run(["ip", "link", "add", "nk9", "type", "netkit"])
    names = {link["ifname"] for link in json.loads(node.run(["ip", "-json", "link", "show"]).stdout)}
    [inner] = [name for name in names if name.startswith("nk") and name != "nk9"]
    node.run(["ip", "link", "set", inner, "netns", ns, "name", "eth0"])
    netns.configure(ns, [f"addr add {ip}/32 dev eth0", "link set eth0 up", "route add default dev eth0"])
    netns.configure(node.ns, ["link set nk9 up", f"route add {ip}/32 dev nk9 scope link"])
    try:
        yield Host("netkit", ns, ip)
    finally:
        node.run(["ip", "link", "del", "nk9"])
        netns.delete([ns])


def has_netkit() -> bool:
    release = tuple(int(part) for part in os.uname().release.split(".")[:2])
    return release >= (6, 7)


if has_netkit():

    def test_a_netkit_pod_talks(lab: Lab, netkit_pod: Host) -> None:
        far = lab.pod("n2p1")
        assert delivered(netkit_pod, far, 100) == 100
        transfer(far, netkit_pod, SOME)


def vlan(node: Node) -> None:
    """Make eth0 a VLAN; the daemon still reaches etcd by the untagged network."""
    number = int(node.ip) & 0xFF
    lines = ["link set eth0 down", "link set eth0 name phys0", "link set phys0 up"]
    lines += [f"addr replace {node.ip}/24 dev phys0", "link add link phys0 name eth0 type vlan id 5"]
    netns.configure(node.ns, [*lines, f"addr add 172.30.0.{number}/24 dev eth0", "link set eth0 up"])


def bond(node: Node) -> None:
    """Make eth0 a bond of two cables, one of them in use."""
    lines = ["link set eth0 down", "link set eth0 name phys0"]
    lines += ["addr flush dev phys0"]
    lines += [f"link add phys1 type veth peer name {node.name}b netns {node.spec.switch_ns}"]
    lines += ["link add eth0 type bond mode active-backup miimon 100"]
    lines += ["link set phys0 master eth0", "link set phys1 master eth0"]
    netns.configure(node.ns, [*lines, f"addr add {node.ip}/24 dev eth0", "link set eth0 up"])
    bridge = json.loads(netns_links(node.spec.switch_ns))[0]["ifname"]
    netns.configure(node.spec.switch_ns, [f"link set {node.name}b master {bridge} up"])


def netns_links(ns: str) -> str:
    return Host("switch", ns).run(["ip", "-json", "link", "show", "type", "bridge"]).stdout


@pytest.mark.parametrize("kind", [vlan, bond])
def test_an_uplink_of_another_kind_is_carried(make_lab: MakeLab, kind: Callable[[Node], None]) -> None:
    lab = start(make_lab, before=lambda lab: [kind(node) for node in lab.nodes])
    pair = pair_of(lab)
    seen = kinds.small_udp(pair)
    assert all(one.fast for one in seen), seen
    transfer(pair.client, pair.server, SOME)
    if kind is bond:
        for node in lab.nodes:
            node.run(["ip", "link", "set", "phys0", "down"])
        eventually(lambda: delivered(pair.client, pair.server, 50) == 50, "the other cable", 60)
        assert all(one.fast for one in kinds.small_udp(pair))
