"""What the programs leave to the kernel: it arrives or is answered as ever, each under its own reason."""

from __future__ import annotations

import json
import socket
from collections.abc import Generator
from ipaddress import IPv4Address, IPv4Network

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import ARP, Ether
from scapy.layers.vxlan import VXLAN

from flannel_ebpf.contract.abi import AddrKey
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, netns
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.stock import StockFlannel
from tests.netns.kinds import BULK, Pair, admitted_udp, pod_mtu
from tests.netns.labs import MakeLab
from tests.netns.paths import programs, watch
from tests.netns.traffic import (
    capture,
    delivered,
    icmp,
    icmp_error,
    injector,
    may_fragment,
    numbers,
    path_mtu,
    ping,
    raw,
    send_udp,
    transfer,
    udp,
)
from tests.polls import eventually


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf")


@pytest.fixture
def pair(lab: Lab) -> Pair:
    return Pair(lab, lab.node("n1"), lab.node("n2"))


@pytest.fixture(scope="module")
def subnets_lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", fastpath="subnets", pods_per_node=1)


def test_too_large_without_df_is_fragmented_as_the_kernel_does(pair: Pair) -> None:
    with (
        pod_mtu(pair, 1500),
        admitted_udp(pair) as (send, get),
        watch(pair.sender) as near,
        watch(pair.receiver) as far,
        capture(pair.lab.spec.switch_ns, "n1") as frames,
    ):
        send(20, 1472)
        assert get(20) == list(range(20))
        inner = [frame[VXLAN][IP] for frame in frames() if VXLAN in frame]
    assert near.at(Hook.FROM_POD, Reason.TOO_BIG) == 20
    assert far.at(Hook.FROM_PEER, Reason.FRAGMENT) == 40
    assert [packet.len for packet in inner] == [1444, 76] * 20


@pytest.fixture
def narrow(pair: Pair) -> Generator[Pair, None, None]:
    """Only 1300 bytes fit between the two nodes, as their routes know."""
    ends = ((pair.sender, pair.receiver), (pair.receiver, pair.sender))
    for node, other in ends:
        node.run(["ip", "route", "add", str(other.ip), "dev", "eth0", "mtu", "1300"])
    yield pair
    for node, other in ends:
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward_use_pmtu=0"])
        node.run(["ip", "route", "delete", str(other.ip), "dev", "eth0"])
    for host in (pair.sender, pair.receiver, pair.client, pair.server):
        host.run(["ip", "route", "flush", "cache"])


def test_a_narrow_path_between_nodes_fragments_outside(narrow: Pair) -> None:
    """The kernel's vxlan leaves DF clear outside, so the pod need not learn of it."""
    with admitted_udp(narrow) as (send, get):

        def too_big() -> bool:
            with watch(narrow.sender) as near, watch(narrow.receiver) as far:
                send(20, 1400)
                assert get(20) == list(range(20))
            return (near.at(Hook.FROM_POD, Reason.TOO_BIG), far.at(Hook.FROM_PEER, Reason.OUTER)) == (20, 40)

        eventually(too_big, "handing over what is too large for the path")
    transfer(narrow.client, narrow.server, BULK)


def test_a_narrow_path_between_nodes_is_learned_by_the_pod_where_the_kernel_tells(narrow: Pair) -> None:
    for node in (narrow.sender, narrow.receiver):
        node.run(["sysctl", "-qw", "net.ipv4.ip_forward_use_pmtu=1"])
    with udp(narrow.client) as source, udp(narrow.server) as target:
        source.connect((str(narrow.server.ip), target.getsockname()[1]))
        may_fragment(source, False)

        def learned() -> bool:
            if path_mtu(source) > 1250:
                source.send(bytes(1400))
                source.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            return path_mtu(source) == 1250

        eventually(learned, "learning an MTU of 1250")
    transfer(narrow.client, narrow.server, BULK)
    with watch(narrow.sender) as near, watch(narrow.receiver) as far:
        transfer(narrow.client, narrow.server, BULK)
    assert near.path == far.path == "BPF", (near, far)


def test_sctp(pair: Pair) -> None:
    with (
        watch(pair.sender) as near,
        watch(pair.receiver) as far,
        raw(pair.client, 132) as source,
        raw(pair.server, 132) as target,
    ):
        for number in range(60):
            source.sendto(bytes([0x13, 0x88, 0x13, 0x89, *bytes(8), number]), (str(pair.server.ip), 0))
        got = {target.recv(2048)[-1] for _ in range(60)}
    assert got == set(range(60))
    assert near.at(Hook.FROM_POD, Reason.PROTOCOL) == far.at(Hook.FROM_PEER, Reason.PROTOCOL) == 60


def test_ip_options(pair: Pair) -> None:
    with udp(pair.client) as source, udp(pair.server) as target:
        there = (str(pair.server.ip), target.getsockname()[1])
        send_udp(source, there, 60)
        assert len(numbers(target, 60)) == 60
        source.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\1\1\1\0")
        with watch(pair.sender) as near, watch(pair.receiver) as far:
            send_udp(source, there, 30)
            assert len(numbers(target, 30)) == 30
    assert near.at(Hook.FROM_POD, Reason.IP_OPTIONS) == far.at(Hook.FROM_PEER, Reason.IP_OPTIONS) == 30


def test_arp_and_ipv6_on_the_bridge(lab: Lab) -> None:
    node = lab.node("n1")
    one, other = node.pods[:2]
    one.run(["ip", "-6", "addr", "add", "fd00::1/64", "dev", "eth0", "nodad"])
    other.run(["ip", "-6", "addr", "add", "fd00::2/64", "dev", "eth0", "nodad"])
    with watch(node) as seen:
        assert ping(one, "fd00::2", 20) == 20
        one.run(["ip", "neigh", "flush", "dev", "eth0"])
        assert ping(one, other.ip, 5) == 5
    assert seen.at(Hook.FROM_POD, Reason.NOT_FAMILY) >= 42
    assert seen.fast == 0


@pytest.mark.parametrize("to", ["multicast", "broadcast"])
def test_multicast_and_broadcast_reach_the_bridge(lab: Lab, to: str) -> None:
    node = lab.node("n1")
    one, other = node.pods[:2]
    group = "239.1.2.3" if to == "multicast" else str(node.subnet.broadcast_address)
    with udp(one) as source, udp(other) as target:
        if to == "multicast":
            membership = socket.inet_aton(group) + other.ip.packed
            target.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
        source.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        with watch(node) as seen:
            send_udp(source, (group, target.getsockname()[1]), 20)
            assert len(numbers(target, 20)) == 20
    assert seen.at(Hook.FROM_POD, Reason.NOT_UNICAST) >= 20
    assert seen.fast == 0


@pytest.mark.parametrize("fastpath", ["flows", "subnets"])
def test_nobody_at_the_address_is_said_as_ever(lab: Lab, subnets_lab: Lab, fastpath: str) -> None:
    lab = lab if fastpath == "flows" else subnets_lab
    client, receiver = lab.node("n1").pods[0], lab.node("n2")
    receiver.run(["sysctl", "-qw", "net.ipv4.neigh.cni0.retrans_time_ms=50"])
    with udp(client) as source, icmp(client) as errors, watch(receiver) as far:
        send_udp(source, (str(receiver.subnet[200]), 4000), 40)
        assert icmp_error(errors, 3)[0] == str(receiver.subnet[0])
    assert far.fast == 0
    if fastpath == "subnets":
        assert far.at(Hook.FROM_PEER, Reason.NO_POD) == 40


@pytest.fixture
def ptp_pod(lab: Lab) -> Generator[Host, None, None]:
    """A pod on n1 as CNI's ptp plugin makes it: a veth that is routed to, no bridge."""
    node = lab.node("n1")
    ip, ns = node.subnet[77], f"{lab.spec.name}-n1p77"
    netns.create([ns])
    netns.configure(
        node.ns,
        [
            f"link add vethptp mtu {node.mtu} type veth peer name eth0 mtu {node.mtu} netns {ns}",
            f"addr add {node.gateway.ip}/32 dev vethptp",
            "link set vethptp up",
            f"route add {ip}/32 dev vethptp scope host",
        ],
    )
    netns.configure(
        ns,
        [
            f"addr add {ip}/32 dev eth0",
            "link set eth0 up",
            f"route add {node.gateway.ip} dev eth0 scope link",
            f"route add default via {node.gateway.ip}",
        ],
    )
    try:
        yield Host("ptp", ns, IPv4Address(ip))
    finally:
        node.run(["ip", "link", "del", "vethptp"])
        netns.delete([ns])


def test_a_ptp_pod_is_carried_too(lab: Lab, ptp_pod: Host) -> None:
    node, far = lab.node("n1"), lab.node("n2").pods[0]
    eventually(lambda: programs(node, "vethptp") == 2, "attaching to a ptp veth")
    with watch(node) as seen:
        assert delivered(ptp_pod, far, 200) == 200
        transfer(far, ptp_pod, BULK)
    assert seen.path == "BPF", seen


def announce(pod: Host) -> None:
    """Gratuitous ARP, as CNI's bridge plugin sends it for a new pod."""
    mac = json.loads(pod.run(["ip", "-json", "link", "show", "dev", "eth0"]).stdout)[0]["address"]
    about = ARP(op=1, hwsrc=mac, psrc=str(pod.ip), hwdst="00:00:00:00:00:00", pdst=str(pod.ip))
    with injector(pod.ns, "eth0") as inject:
        inject(Ether(src=mac, dst="ff:ff:ff:ff:ff:ff") / about)


def test_a_pod_that_comes_is_carried_and_one_that_goes_is_forgotten(lab: Lab) -> None:
    node, far = lab.node("n1"), lab.node("n2").pods[0]
    pod = node.add_pod()
    eventually(lambda: programs(node, pod.veth) == 2, "attaching to a new pod")
    with watch(node) as seen:
        transfer(pod, far, BULK)
    assert seen.path == "BPF", seen
    node.remove_pod(pod)
    with Map.open(node.map_path("fl_pods")) as pods:
        eventually(lambda: pods.lookup(AddrKey(pod.ip).pack()) is None, "forgetting the pod")
    with watch(node) as gone:
        assert ping(far, pod.ip, 5, patience=1) == 0
    assert gone.fast == 0
    again = node.add_pod(ip=pod.ip)
    eventually(lambda: programs(node, again.veth) == 2, "attaching to the next pod")
    try:
        announce(again)
        with watch(node) as seen:
            transfer(again, far, BULK)
            assert ping(far, again.ip, 50) == 50
        assert seen.path == "BPF", seen
    finally:
        node.remove_pod(again)


def test_subnets_of_different_lengths(make_lab: MakeLab) -> None:
    """Leases from before a change of SubnetLen: all are reached, those of one length by BPF."""
    lab = make_lab(nodes=3, datapath="ebpf", pods_per_node=1, start_daemons=False)
    n1, n2, n3 = lab.nodes
    stocks = [
        StockFlannel(lab, n2, IPv4Network("10.1.200.0/22")),
        StockFlannel(lab, n3, IPv4Network("10.1.9.0/26")),
    ]
    for stock in stocks:
        stock.start()
    n1.start_daemon()
    lab.wait_ready([n1])
    for stock in stocks:
        stock.sync()
    lab.add_pods()
    far = n2.add_pod(ip=IPv4Address("10.1.203.7"))
    lab.wait_attached([n1])
    for server, path in ((n2.pods[0], "kernel"), (far, "kernel"), (n3.pods[0], "BPF")):
        with watch(n1) as seen:
            transfer(n1.pods[0], server, BULK)
        assert seen.path == path, (server, seen)


def test_direct_and_tunnelled_peers_side_by_side(make_lab: MakeLab) -> None:
    """DirectRouting, where a router lies on the way to one of two peers."""
    lab = make_lab(
        nodes=3,
        datapath="ebpf",
        pods_per_node=1,
        start_daemons=False,
        backend_config={"DirectRouting": True},
    )
    n1, n2, n3 = lab.nodes
    Host("switch", lab.spec.switch_ns, n1.ip).run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    for node, other in ((n1, n3), (n3, n1)):
        node.run(["sysctl", "-qw", "net.ipv4.conf.all.accept_redirects=0"])
        node.run(["ip", "route", "add", f"{other.ip}/32", "via", "192.168.64.254", "dev", "eth0"])
    for node in lab.nodes:
        node.start_daemon()
    lab.wait_ready()
    lab.add_pods()
    lab.wait_attached()
    for far, reason in ((n2, Reason.FAST_DIRECT), (n3, Reason.FAST_VXLAN)):
        with watch(n1, "flannel.1") as near, watch(far, "flannel.1") as there:
            transfer(n1.pods[0], far.pods[0], BULK)
            assert ping(n1.pods[0], far.pods[0].ip, 50) == 50
        for seen in (near, there):
            assert seen.path == "BPF", seen
            assert seen.any(reason) == seen.fast
