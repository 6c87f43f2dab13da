"""Packets whose source is not who may send it: forged tunnel packets, spoofing pods, the guard at XDP."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet, Raw

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from tests.netns.kinds import BULK
from tests.netns.labs import MakeLab
from tests.netns.life import restart
from tests.netns.paths import watch
from tests.netns.traffic import delivered, injector, numbers, send_udp, transfer, udp
from tests.polls import eventually

STRANGER = "192.168.64.77"


@pytest.fixture(scope="module")
def shared(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf")


@pytest.fixture
def lab(shared: Lab) -> Generator[Lab, None, None]:
    """The lab whose n1 has default options again after the test."""
    yield shared
    restart(shared.node("n1"))


def mac_of(host: Host, device: str) -> str:
    return str(json.loads(host.run(["ip", "-json", "link", "show", "dev", device]).stdout)[0]["address"])


@dataclass(frozen=True)
class Wire:
    """Forged frames to n1's uplink."""

    lab: Lab

    def frame(self, outer: str, inner: str, number: int, port: int) -> Packet:
        n1, n2 = self.lab.nodes
        payload = number.to_bytes(4, "big") + bytes(60)
        return (
            Ether(dst=mac_of(n1, "eth0"))
            / IP(src=outer, dst=str(n1.ip))
            / UDP(sport=40000, dport=8472, chksum=0)
            / VXLAN(vni=1, flags=8)
            / Ether(src=mac_of(n2, "flannel.1"), dst=mac_of(n1, "flannel.1"))
            / IP(src=inner, dst=str(n1.pods[0].ip))
            / UDP(sport=5000, dport=port)
            / Raw(payload)
        )

    def send(self, outer: str, inner: str, count: int = 20) -> int:
        """Forge `count` packets to the first pod of n1; return how many arrive there."""
        with udp(self.lab.node("n1").pods[0]) as target, injector(self.lab.spec.switch_ns, "n1") as inject:
            frame = self.frame(outer, inner, 0, target.getsockname()[1])
            for _ in range(count):
                inject(frame)
            return len(numbers(target, count, 0.3))


def forgeries(lab: Lab) -> list[tuple[str, str, Reason]]:
    """Outer source, inner source, what that is."""
    n1, n2 = lab.nodes
    return [
        (STRANGER, str(n2.pods[0].ip), Reason.DROP_NOT_MEMBER),
        (STRANGER, "10.1.222.2", Reason.DROP_NOT_MEMBER),
        (str(n2.ip), str(n1.pods[1].ip), Reason.DROP_PEER_SOURCE),
        (str(n2.ip), str(n1.gateway.ip), Reason.DROP_PEER_SOURCE),
        (str(n2.ip), str(n1.ip), Reason.DROP_PEER_SOURCE),
    ]


def test_what_a_member_sends_from_its_subnet_arrives(lab: Lab) -> None:
    n2 = lab.node("n2")
    assert Wire(lab).send(str(n2.ip), str(n2.pods[0].ip)) == 20
    assert Wire(lab).send(str(n2.ip), str(n2.ip)) == 20  # its own address: a process on the node


def test_forged_tunnel_packets_are_dropped_and_counted(lab: Lab) -> None:
    for outer, inner, reason in forgeries(lab):
        with watch(lab.node("n1")) as seen:
            assert Wire(lab).send(outer, inner) == 0, (outer, inner)
        assert seen.at(Hook.FROM_PEER, reason) == 20
        assert seen.kernel == 0, "flannel.1 saw one"


def test_an_admitted_flow_protects_nobody(lab: Lab) -> None:
    """A stranger who guesses a running flow's tuple gets nothing through."""
    n1, n2 = lab.nodes
    with udp(n1.pods[0]) as target, udp(n2.pods[0], 5000) as source:
        port = target.getsockname()[1]
        send_udp(source, (str(n1.pods[0].ip), port), 60)
        assert len(numbers(target, 60)) == 60
        with injector(lab.spec.switch_ns, "n1") as inject, watch(n1) as seen:
            frame = Wire(lab).frame(STRANGER, str(n2.pods[0].ip), 7, port)
            for _ in range(20):
                inject(frame)
            assert numbers(target, 1, 0.3) == []
    assert seen.at(Hook.FROM_PEER, Reason.DROP_NOT_MEMBER) == 20


@pytest.mark.parametrize("check", ["count", "off"])
def test_counting_only_or_not_at_all_leaves_it_to_the_kernel(lab: Lab, check: str) -> None:
    restart(lab.node("n1"), f"--source-check={check}")
    outer, inner, reason = forgeries(lab)[0]
    with watch(lab.node("n1")) as seen:
        assert Wire(lab).send(outer, inner) == 20
    assert seen.at(Hook.FROM_PEER, reason) == (20 if check == "count" else 0)


@contextmanager
def spoofing(
    lab: Lab, address: IPv4Address | None = None
) -> Generator[tuple[Callable[[int], None], Callable[[], int]], None, None]:
    """Yield what makes n1p2 send as n1p1 (or from `address`) to n2p1, and what says how many came.

    n1p1 is known by then.
    """
    n1, n2 = lab.nodes
    victim, spoofer, target = n1.pods[0], n1.pods[1], n2.pods[0]
    assert delivered(target, victim, 60) == 60
    with udp(target) as sock, injector(spoofer.ns, "eth0") as inject:
        frame = (
            Ether(src=mac_of(spoofer, "eth0"), dst=mac_of(n1, "cni0"))
            / IP(src=str(address or victim.ip), dst=str(target.ip))
            / UDP(sport=5000, dport=sock.getsockname()[1])
            / Raw(bytes(64))
        )

        def send(count: int) -> None:
            for _ in range(count):
                inject(frame)

        yield send, lambda: len(numbers(sock, 40, 0.3))


def test_a_pod_that_sends_as_another_is_the_kernels(lab: Lab) -> None:
    """It may route for the other. flannel carries that, and BPF has no part in it."""
    with spoofing(lab) as (send, arrived), watch(lab.node("n1")) as seen:
        send(40)
        assert arrived() == 40
    assert seen.at(Hook.FROM_POD, Reason.POD_SOURCE) == 40
    assert seen.at(Hook.FROM_POD, Reason.FAST_VXLAN) == 0


def test_a_pod_that_routes_for_another_does_so_with_programs_too(lab: Lab) -> None:
    """A gateway or VPN pod: what the other sends leaves through it, and is known at its own veth."""
    n1, n2 = lab.nodes
    inside_pod, router, target = n1.pods[0], n1.pods[1], n2.pods[0]
    assert delivered(target, inside_pod, 60) == 60
    router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0"])
    inside_pod.run(["ip", "route", "add", str(target.ip), "via", str(router.ip)])
    try:
        assert delivered(inside_pod, target, 200) == 200
        transfer(inside_pod, target, BULK)
    finally:
        inside_pod.run(["ip", "route", "del", str(target.ip)])


@pytest.mark.parametrize(("check", "came"), [("drop", 0), ("count", 40)])
def test_no_pod_sends_as_its_node(lab: Lab, check: str, came: int) -> None:
    n1 = lab.node("n1")
    restart(n1, f"--source-check={check}", "--fastpath=subnets")
    for address in (n1.subnet[0], n1.gateway.ip):
        with spoofing(lab, address) as (send, arrived), watch(n1) as seen:
            send(40)
            assert arrived() in (0, came)  # the kernel has an opinion of its own
        assert seen.at(Hook.FROM_POD, Reason.DROP_POD_SOURCE) == 40
        assert seen.at(Hook.FROM_POD, Reason.FAST_VXLAN) == 0


def test_no_pod_sends_tunnel_packets(lab: Lab) -> None:
    """With them it could be any pod of any node."""
    n1, n2 = lab.nodes
    sender = n1.pods[0]
    for to, victim, claimed in ((n1, n1.pods[1], n2.pods[0]), (n2, n2.pods[0], n1.pods[1])):
        far = n2 if to is n1 else n1
        inner = (
            Ether(src=mac_of(far, "flannel.1"), dst=mac_of(to, "flannel.1"))
            / IP(src=str(claimed.ip), dst=str(victim.ip))
            / UDP(sport=5000, dport=5001)
            / Raw(bytes(64))
        )
        with udp(victim, 5001) as target, udp(sender) as source, watch(n1) as seen:
            for _ in range(20):
                source.sendto(bytes(VXLAN(vni=1, flags=8) / inner), (str(to.ip), 8472))
            assert numbers(target, 1, 0.3) == []
        assert seen.at(Hook.FROM_POD, Reason.DROP_POD_TUNNEL) == 20


def test_what_is_nobodys_is_carried_as_without_programs(lab: Lab) -> None:
    """A node's second address, or a host that is routed through it: answered, and never by BPF."""
    n1, n2 = lab.nodes
    second = "192.168.64.202"
    n2.run(["ip", "address", "add", f"{second}/32", "dev", "lo"])
    n1.run(["ip", "route", "add", f"{second}/32", "via", str(n2.subnet[0]), "dev", "flannel.1", "onlink"])
    try:
        done = n2.run(["ping", "-c", "60", "-i", "0.01", "-q", "-I", second, str(n1.pods[0].ip)])
        assert "60 received" in done.stdout
    finally:
        n1.run(["ip", "route", "del", f"{second}/32"])
        n2.run(["ip", "address", "del", f"{second}/32", "dev", "lo"])


def xdp_of(node: Node) -> str:
    """How XDP runs on the uplink: native, generic or off."""
    link = json.loads(node.run(["ip", "-json", "link", "show", "dev", "eth0"]).stdout)[0]
    return {0: "off", 1: "native", 2: "generic"}[link.get("xdp", {}).get("mode", 0)]


@pytest.mark.parametrize(("asked", "got"), [("generic", "generic"), ("native", "native"), ("auto", "native")])
def test_the_guard_at_xdp(lab: Lab, asked: str, got: str) -> None:
    n1, n2 = lab.nodes
    restart(n1, f"--xdp={asked}")
    assert xdp_of(n1) == got
    for outer, inner, reason in forgeries(lab):
        with watch(n1) as seen:
            assert Wire(lab).send(outer, inner) == 0
        assert seen.at(Hook.XDP, reason) == 20
        assert seen.at(Hook.FROM_PEER, reason) == 0
    with watch(n1) as seen:
        transfer(n2.pods[0], n1.pods[0], BULK)
        assert delivered(n2.pods[0], n1.pods[0]) == 100
    assert seen.at(Hook.XDP, Reason.MEMBER) > 0
    assert seen.path == "BPF", seen
    restart(n1)
    assert xdp_of(n1) == "off"


@pytest.mark.parametrize(("asked", "got"), [("native", "off"), ("auto", "generic")])
def test_an_uplink_that_refuses_native_xdp(lab: Lab, asked: str, got: str) -> None:
    """veth refuses where its peer's frames may be larger than a page."""
    n1, n2 = lab.nodes
    lab_switch = Host("switch", lab.spec.switch_ns, n1.ip)
    lab_switch.run(["ip", "link", "set", "n1", "mtu", "9000"])
    try:
        said = restart(n1, f"--xdp={asked}")
        assert "refuses XDP in native mode" in said
        eventually(lambda: xdp_of(n1) == got, "the next pass, which comes at once, takes another mode")
        assert delivered(n2.pods[0], n1.pods[0]) == 100
    finally:
        lab_switch.run(["ip", "link", "set", "n1", "mtu", "1500"])
