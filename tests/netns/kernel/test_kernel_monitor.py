"""The monitor wakes the loop for what concerns us, and for nothing else."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.desired.objects import FdbEntry, Filter, LinkAddress, Route
from flannel_ebpf.desired.plan import Delete, Put, plan
from flannel_ebpf.kernel.monitor import KernelMonitor
from flannel_ebpf.kernel.network import KernelNetwork
from tests.netns.kernel.space import NETWORK, OVERLAY, TinyProgram, node, peer, run, scope, there
from tests.polls import eventually, unchanging

QUIET = 0.4
"""Longer than the monitor gathers: what has not woken it by then was ignored."""


class Wakes:
    """Counts calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1

    def settle(self) -> None:
        """Wait until nothing has come for a while, then start counting again."""
        unchanging(lambda: self.count, "the number of wakes", QUIET)
        self.count = 0


@pytest.fixture
def kernel(uplink: int) -> Generator[KernelNetwork, None, None]:
    with KernelNetwork() as network:
        for _ in range(2):
            network.apply(plan(node(uplink) | peer(7), there(network, scope(uplink))))
        yield network


@pytest.fixture
def wakes(kernel: KernelNetwork) -> Generator[Wakes, None, None]:
    wakes = Wakes()
    run("ip link add cni0 type bridge", "ip link set cni0 up")
    with KernelMonitor(wakes, {Family.V4: OVERLAY}, kernel.ports, kernel.echoes):
        wakes.settle()
        yield wakes


@pytest.mark.parametrize(
    "command",
    [
        "ip link set flannel.1 mtu 1300",
        "ip link del flannel.1",
        "ip link add pod type veth peer pod-in",
        "ip address add 10.1.77.1/32 dev flannel.1",
        "ip address add 192.168.64.77/24 dev up0",
        "ip route del 10.1.7.0/24",
        "ip route add default via 192.168.64.1",
        "ip neigh del 10.1.7.0 dev flannel.1",
        "bridge fdb replace 02:01:00:00:00:07 dev flannel.1 dst 172.16.9.9 self permanent",
        "tc qdisc add dev up0 clsact",
        "ip xfrm policy add src 192.168.64.5/32 dst 192.168.64.7/32 proto udp dir out action block",
    ],
)
def test_wakes(wakes: Wakes, command: str) -> None:
    run(command)
    eventually(lambda: wakes.count > 0, "the wake")


@pytest.mark.parametrize(
    "command",
    [
        "ip neigh add 10.1.5.9 lladdr 02:00:00:00:00:97 dev cni0 nud reachable",
        "ip neigh add 192.168.64.9 lladdr 02:00:00:00:00:97 dev up0 nud stale",
        "ip route add 10.9.0.0/16 via 192.168.64.1 table 77",
    ],
)
def test_ignores(wakes: Wakes, command: str) -> None:
    run(command)
    time.sleep(QUIET)
    assert wakes.count == 0


def test_own_filters_and_addresses_do_not_wake(wakes: Wakes, kernel: KernelNetwork, uplink: int) -> None:
    address = LinkAddress(OVERLAY, IPv4Interface("10.1.77.1/32"))
    with TinyProgram.make() as tiny:
        ours = Filter(uplink, "ingress", "fl_from_peer", tiny.info().id, "clsact")
        assert kernel.apply([Put(address)]) == []
        assert kernel.hooks.apply([Put(ours)], scope(uplink), {"fl_from_peer": tiny.fd}) == []
        time.sleep(QUIET)
        assert wakes.count == 0


def test_own_peers_do_not_wake_and_the_same_done_by_others_does(
    wakes: Wakes, kernel: KernelNetwork, uplink: int
) -> None:
    ours = sorted(peer(9), key=lambda obj: isinstance(obj, Route))
    assert kernel.apply([Put(obj) for obj in ours]) == []
    time.sleep(QUIET)
    assert wakes.count == 0
    assert kernel.apply([Delete(obj) for obj in reversed(ours)]) == []
    assert kernel.apply([Put(obj) for obj in ours]) == []
    time.sleep(QUIET)
    assert wakes.count == 0
    assert not kernel.echoes
    entry = next(obj for obj in ours if isinstance(obj, FdbEntry))
    run(f"bridge fdb del {entry.mac} dev {OVERLAY} dst {entry.dst} self")
    eventually(lambda: wakes.count > 0, "the wake for a stranger's change")


def test_a_new_overlay_device_is_followed(wakes: Wakes, kernel: KernelNetwork) -> None:
    run("ip link del flannel.1", "ip link add flannel.1 type vxlan id 1 local 192.168.64.5 dstport 8472")
    wakes.settle()
    run("bridge fdb add 02:01:00:00:00:07 dev flannel.1 dst 172.16.9.9 self permanent")
    eventually(lambda: wakes.count > 0, "the wake")


def test_many_changes_are_few_wakes(wakes: Wakes) -> None:
    for number in range(100):
        run(f"ip route add 10.9.{number}.0/24 via 192.168.64.1")
    time.sleep(QUIET)
    assert 0 < wakes.count < 30


def dropped() -> int:
    """Return how many messages the namespace's listening rtnetlink sockets have lost."""
    rows = [line.split() for line in Path("/proc/self/net/netlink").read_text().splitlines()[1:]]
    return sum(int(row[8]) for row in rows if row[1] == "0" and row[3] != "00000000")


def test_flood_that_overruns_the_socket_is_a_change(kernel: KernelNetwork, uplink: int) -> None:
    """While `on_change` blocks, more messages come than the buffer holds; afterwards it is called again."""
    entered, go_on, calls = threading.Event(), threading.Event(), Wakes()

    def block() -> None:
        calls()
        entered.set()
        go_on.wait(60)

    with KernelMonitor(block, {Family.V4: OVERLAY}), KernelNetwork() as other:
        run("ip address add 10.1.77.1/32 dev flannel.1")
        assert entered.wait(60)
        before = calls.count
        peers = [obj for number in range(10, 250) for obj in peer(number)]
        for make in (Put, Delete) * 5:
            assert other.apply([make(obj) for obj in peers]) == []
        assert dropped() > 0
        go_on.set()
        eventually(lambda: calls.count > before, "the wake after the flood")


def test_stop_ends_the_thread_and_is_idempotent(kernel: KernelNetwork) -> None:
    before = threading.active_count()
    monitor = KernelMonitor(lambda: None, {Family.V4: OVERLAY})
    assert threading.active_count() == before + 1
    monitor.stop()
    monitor.stop()
    assert threading.active_count() == before


def test_the_kernels_own_word_is_heard_whatever_ports_are_ours(uplink: int) -> None:
    """A library that has not bound its socket yet says 0, which is also the kernel, for everybody."""
    with KernelNetwork() as fresh:
        assert 0 not in fresh.ports
    wakes = Wakes()
    with KernelMonitor(wakes, {Family.V4: OVERLAY}, (0,)):
        wakes.settle()
        run("ip link set up0 mtu 1300")
        eventually(lambda: wakes.count > 0, "the wake")


INTEREST = [
    ("ip route add 172.20.0.0/16 dev up0", False),
    ("ip route add 172.20.0.0/16 dev up0 table 100", False),
    ("ip route add default dev up0", True),  # the way to the peer that is not on the link
    ("ip route add 203.0.113.0/24 dev up0", True),
    ("ip route add 203.0.114.0/24 dev up0", False),
    ("ip route add 203.0.113.9/32 dev up0 table 52", True),  # a rule leads there
    ("ip route add 192.168.64.9/32 dev up0", True),  # inside the uplink's prefix
    ("ip route add 10.1.99.0/24 dev up0", True),  # inside Network
    ("ip route add 10.0.0.0/8 dev up0", False),  # shorter than ours: it takes nothing from them
    ("ip rule add from 10.99.0.0/16 lookup 100", True),
]


@pytest.mark.parametrize(("command", "wakes_us"), INTEREST)
def test_only_routes_of_interest_wake(kernel: KernelNetwork, command: str, wakes_us: bool) -> None:
    wakes = Wakes()
    kernel.interest.tell([NETWORK, IPv4Network("192.168.64.0/24")], [IPv4Address("203.0.113.9")], [52])
    with KernelMonitor(wakes, {Family.V4: OVERLAY}, kernel.ports, kernel.echoes, kernel.interest):
        wakes.settle()
        run(command)
        if wakes_us:
            eventually(lambda: wakes.count > 0, "the change wakes")
        else:
            time.sleep(QUIET)
            assert wakes.count == 0
