"""The kernel path of IPv6, made, healed and removed beside that of IPv4, which it leaves alone."""

from __future__ import annotations

import random
import subprocess
from ipaddress import IPv6Address, IPv6Network

import pytest

from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.desired.objects import LAST_METRIC, Object, Route, VxlanLink
from flannel_ebpf.desired.plan import Delete, Failure, Put, plan
from flannel_ebpf.kernel.network import KernelNetwork
from tests.netns.kernel.space import IPV4, IPV6, OWN_MAC, index_of, run, there

OVERLAY, WIDE = IPV6.overlay, IPv6Network("fc00:0:0:9::/64")


@pytest.fixture
def uplink(uplink: int) -> int:
    run("ip address add fd00::5/64 dev up0 nodad")
    return uplink


def settle(kernel: KernelNetwork, uplink: int, desired: set[Object]) -> list[Failure]:
    """Plan and apply until the plan is empty; return the failures."""
    for _ in range(4):
        ops = plan(desired, now(kernel, uplink, desired))
        if not ops:
            return []
        failures = kernel.apply(ops)
        if failures:
            return failures
    pytest.fail(f"never settled: {ops}")


def now(kernel: KernelNetwork, uplink: int, desired: set[Object]) -> set[Object]:
    wanted: dict[Network, Address | None] = {
        obj.dst: obj.gateway for obj in desired if isinstance(obj, Route)
    }
    return there(kernel, IPV6.scope(uplink), wanted=wanted)


def test_the_device_is_what_flannel_makes(kernel: KernelNetwork, uplink: int) -> None:
    assert settle(kernel, uplink, IPV6.node(uplink)) == []
    shown = run(f"ip -d link show {OVERLAY}")
    expected = "vxlan id 1 local fd00::5 dev up0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300"
    assert f"{expected} udpcsum noudp6zerocsumtx noudp6zerocsumrx" in shown
    assert "mtu 1430" in shown
    [line] = [it for it in run(f"ip -6 address show dev {OVERLAY}").splitlines() if "fc00" in it]
    assert "inet6 fc00:0:0:5::/128 scope global nodad" in line


def test_a_device_that_flanneld_made_is_right_as_it_is(kernel: KernelNetwork, uplink: int) -> None:
    run(
        f"ip link add {OVERLAY} mtu 1430 address {OWN_MAC}"
        " type vxlan id 1 dev up0 local fd00::5 dstport 8472 nolearning",
        f"ip address add fc00:0:0:5::/128 dev {OVERLAY}",
        f"ip link set {OVERLAY} up",
        f"sysctl -q -w net/ipv6/conf/{OVERLAY}/accept_ra=0",
    )
    assert plan(IPV6.node(uplink), now(kernel, uplink, set())) == []


def test_peers_are_as_flannel_makes_them(kernel: KernelNetwork, uplink: int) -> None:
    desired = IPV6.node(uplink) | IPV6.peer(7)
    assert settle(kernel, uplink, desired) == []
    assert now(kernel, uplink, desired) == desired
    assert run("ip -6 route show fc00:0:0:7::/64").split() == (
        f"fc00:0:0:7::/64 via fc00:0:0:7:: dev {OVERLAY} proto 251 metric 1024 onlink pref medium".split()
    )
    assert run(f"ip -6 neigh show fc00:0:0:7:: dev {OVERLAY}").split() == [
        "fc00:0:0:7::", "lladdr", "02:01:00:00:00:07", "PERMANENT",
    ]  # fmt: skip
    assert f"02:01:00:00:00:07 dev {OVERLAY} dst fd16::7" in run("bridge fdb show")


CHANGES = [
    f"ip address add fc00:0:0:77::1/128 dev {OVERLAY} nodad",
    f"ip address del fc00:0:0:5::/128 dev {OVERLAY}",
    "ip -6 route del fc00:0:0:7::/64",
    "ip -6 route replace fc00:0:0:7::/64 via fd00::7 dev up0",
    "ip -6 route append fc00:0:0:7::/64 via fd00::7 dev up0",
    "ip -6 route replace fc00:0:0:7::/64 via fd00::7 dev up0 proto 251",
    "ip -6 route replace blackhole fc00:0:0:7::/64",
    f"ip -6 route add fc00:0:0:9::/64 dev {OVERLAY}",
    f"ip -6 route add fc00:0:0:9::/64 via fc00:0:0:9:: dev {OVERLAY} onlink proto bird",
    "ip -6 route add fc00:0:0:9::/64 via fd00::9 proto 251",
    "ip -6 route add blackhole fc00:0:0:9::/64 proto 251",
    f"ip neigh replace fc00:0:0:7:: lladdr 02:00:00:00:00:99 dev {OVERLAY} nud permanent",
    f"ip neigh replace fc00:0:0:7:: lladdr 02:00:00:00:00:99 dev {OVERLAY} nud stale",
    f"ip neigh del fc00:0:0:7:: dev {OVERLAY}",
    f"ip neigh add fc00:0:0:9:: lladdr 02:00:00:00:00:99 dev {OVERLAY} nud permanent",
    f"bridge fdb replace 02:01:00:00:00:07 dev {OVERLAY} dst fd16::99 self permanent",
    f"bridge fdb del 02:01:00:00:00:07 dev {OVERLAY} self",
    f"bridge fdb add 02:00:00:00:00:99 dev {OVERLAY} dst fd16::99 self permanent",
    f"sysctl -q -w net/ipv6/conf/{OVERLAY}/accept_ra=1",
    f"ip link set {OVERLAY} down",
    f"ip link set {OVERLAY} mtu 1300",
    f"ip link set {OVERLAY} mtu 1200",  # the kernel takes IPv6 off such a device
    f"ip link set {OVERLAY} type vxlan id 1 local fd00::9",
    f"ip link del {OVERLAY}",
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_from_outside_is_undone(kernel: KernelNetwork, uplink: int, change: str) -> None:
    desired = IPV6.node(uplink) | IPV6.peer(7)
    settle(kernel, uplink, desired)
    run(change)
    assert now(kernel, uplink, desired) != desired
    assert settle(kernel, uplink, desired) == []
    assert now(kernel, uplink, desired) == desired


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_heals(kernel: KernelNetwork, uplink: int, seed: int) -> None:
    chance = random.Random(seed)
    for _ in range(8):
        for command in chance.sample(CHANGES, chance.randint(1, 6)):
            subprocess.run(command.split(), capture_output=True, check=False, timeout=30)
        desired = IPV6.node(uplink) | IPV6.peer(7) | IPV6.peer(chance.randint(10, 99))
        assert settle(kernel, uplink, desired) == [], f"seed {seed}"
        assert now(kernel, uplink, desired) == desired, f"seed {seed}"


@pytest.mark.parametrize(
    "device",
    [
        "type vxlan id 2 local fd00::5 dev up0 dstport 8472 nolearning",
        "type vxlan id 1 local fd00::5 dev up0 dstport 8472",
        "type vxlan id 1 group ff05::100 local fd00::5 dev up0 dstport 8472 nolearning",
        "type vxlan id 1 local 192.168.64.5 dev up0 dstport 8472 nolearning",
    ],
)
def test_a_device_of_other_make_is_replaced(kernel: KernelNetwork, uplink: int, device: str) -> None:
    run(f"ip link add {OVERLAY} {device}")
    before = index_of(OVERLAY)
    desired = IPV6.node(uplink) | IPV6.peer(7)
    assert settle(kernel, uplink, desired) == []
    assert index_of(OVERLAY) != before
    assert now(kernel, uplink, desired) == desired


def test_routes_of_flanneld_are_adopted_not_doubled(kernel: KernelNetwork, uplink: int) -> None:
    settle(kernel, uplink, IPV6.node(uplink))
    run(
        f"ip -6 route add fc00:0:0:7::/64 via fc00:0:0:7:: dev {OVERLAY} onlink",
        "ip -6 route add fc00:0:0:9::/64 via fd00::9 dev up0",
        "ip -6 route add fc00:0:0:a::/64 via fd00::9 dev up0",  # nobody wants it: not ours
    )
    desired = IPV6.node(uplink) | IPV6.peer(7) | {Route(WIDE, IPv6Address("fd00::9"), "up0")}
    olds = [op.old for op in plan(desired, now(kernel, uplink, desired)) if isinstance(op, Put)]
    assert sorted(old.protocol for old in olds if isinstance(old, Route)) == [3, 3]
    assert settle(kernel, uplink, desired) == []
    shown = run("ip -6 route show").splitlines()
    assert [sum(line.startswith(f"fc00:0:0:{n}::/64") for line in shown) for n in (7, 9, "a")] == [1, 1, 1]
    assert settle(kernel, uplink, IPV6.node(uplink)) == []
    assert [line.split()[0] for line in run("ip -6 route show").splitlines() if "fc00:0:0:a" in line]


def test_a_blackhole_takes_what_the_bridge_does_not(kernel: KernelNetwork, uplink: int) -> None:
    hole = Route(IPV6.subnet, None, "", blackhole=True, metric=LAST_METRIC)
    desired = IPV6.node(uplink) | {hole}
    run(
        "ip link add cni0 type bridge",
        "ip link set cni0 up",
        "ip address add fc00:0:0:5::1/64 dev cni0 nodad",
    )
    assert settle(kernel, uplink, desired) == []
    assert now(kernel, uplink, desired) == desired
    assert "dev cni0" in run("ip -6 route get fc00:0:0:5::2")
    run("ip link del cni0")
    lost = subprocess.run(
        ["ip", "-6", "route", "get", "fc00:0:0:5::2"], capture_output=True, text=True, check=False
    )
    assert lost.returncode != 0
    assert settle(kernel, uplink, IPV6.node(uplink)) == []


@pytest.mark.parametrize("remove", [False, True])
def test_the_families_do_not_see_each_other(kernel: KernelNetwork, uplink: int, remove: bool) -> None:
    four = IPV4.node(uplink) | IPV4.peer(7)
    for _ in range(3):
        kernel.apply(plan(four, there(kernel, IPV4.scope(uplink))))
    six = IPV6.node(uplink) | IPV6.peer(7)
    assert settle(kernel, uplink, six) == []
    assert there(kernel, IPV4.scope(uplink)) == four
    assert now(kernel, uplink, six) == six
    if remove:
        kernel.apply([Delete(obj) for obj in now(kernel, uplink, six)])
        assert now(kernel, uplink, set()) == set()
        assert there(kernel, IPV4.scope(uplink)) == four


def test_without_ipv6_on_the_host_the_reason_is_said(kernel: KernelNetwork, uplink: int) -> None:
    run("sysctl -q -w net.ipv6.conf.all.disable_ipv6=1", "sysctl -q -w net.ipv6.conf.default.disable_ipv6=1")
    [failure] = settle(kernel, uplink, IPV6.node(uplink))
    assert isinstance(failure.op.obj, VxlanLink)
    assert str(failure.error) == (
        "put device flannel-v6.1 (vxlan id 1 dstport 8472 local fd00::5): Operation not permitted "
        "(IPv6 support disabled by administrator)"
    )
