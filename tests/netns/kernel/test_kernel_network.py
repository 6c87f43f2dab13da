"""KernelNetwork against the kernel: every kind of object made, changed, removed; nobody else's touched."""

from __future__ import annotations

import logging
import random
import re
import subprocess
import time
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

import pytest

from flannel_ebpf.base.errors import DeviceMissing
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.base.model import Mac
from flannel_ebpf.desired.objects import (
    LinkAddress,
    Neighbour,
    Object,
    Route,
    Scope,
    Sysctl,
    TunLink,
    VxlanLink,
)
from flannel_ebpf.desired.plan import Delete, Failure, Op, Put, plan
from flannel_ebpf.kernel.network import KernelNetwork
from tests.netns.kernel.space import (
    NETWORK,
    OVERLAY,
    OWN_MAC,
    PUBLIC_IP,
    SUBNET,
    index_of,
    node,
    peer,
    run,
    scope,
    there,
    vxlan,
)

log = logging.getLogger("figures")
OTHER = IPv4Network("10.1.9.0/24")


def wanted(desired: set[Object]) -> dict[Network, Address | None]:
    """Return the destinations and their nodes: of 10.1.N.0/24 it is 192.168.64.N."""
    return {
        obj.dst: IPv4Address("192.168.64.0") + int(obj.dst.network_address.packed[2])
        for obj in desired
        if isinstance(obj, Route)
    }


def settle(kernel: KernelNetwork, where: Scope, desired: set[Object]) -> tuple[int, list[Failure]]:
    """Plan and apply until the plan is empty; return the number of operations and the failures."""
    count, failures = 0, []
    for _ in range(4):
        ops = plan(desired, there(kernel, where, wanted=wanted(desired)))
        if not ops or failures:
            break
        count += len(ops)
        failures = kernel.apply(ops)
    else:
        pytest.fail(f"never settled: {ops}")
    return count, failures


def test_second_plan_is_empty(kernel: KernelNetwork, uplink: int) -> None:
    desired = node(uplink) | peer(7) | peer(9)
    assert settle(kernel, scope(uplink), desired) == (9, [])
    assert there(kernel, scope(uplink)) == desired
    assert plan(desired, there(kernel, scope(uplink))) == []


def test_device_is_what_flannel_makes(kernel: KernelNetwork, uplink: int) -> None:
    settle(kernel, scope(uplink), node(uplink))
    shown = run(f"ip -d link show {OVERLAY}")
    expected = f"vxlan id 1 local {PUBLIC_IP} dev up0 srcport 0 0 dstport 8472 nolearning ttl auto ageing 300"
    assert f"{expected} udpcsum noudp6zerocsumtx noudp6zerocsumrx" in shown
    for absent in ("group", "remote", "l2miss", "gbp", "external"):
        assert absent not in shown.split("vxlan id")[1]


@pytest.mark.parametrize(
    "change",
    [
        f"ip link set {OVERLAY} type vxlan id 1 local 192.168.64.9",
        f"ip link set {OVERLAY} mtu 1300",
        f"ip link set {OVERLAY} address 02:00:00:00:00:99",
        f"ip link set {OVERLAY} down",
    ],
)
def test_device_is_mended_in_place(kernel: KernelNetwork, uplink: int, change: str) -> None:
    desired = node(uplink) | peer(7)
    settle(kernel, scope(uplink), desired)
    before = index_of(OVERLAY)
    run(change)
    assert plan(desired, there(kernel, scope(uplink))) != []
    assert settle(kernel, scope(uplink), desired)[1] == []
    assert index_of(OVERLAY) == before
    assert there(kernel, scope(uplink)) == desired


@pytest.mark.parametrize(
    "device",
    [
        "type vxlan id 2 local 192.168.64.5 dev up0 dstport 8472 nolearning",
        "type vxlan id 1 local 192.168.64.5 dev up0 dstport 4789 nolearning",
        "type vxlan id 1 local 192.168.64.5 dev up0 dstport 8472",
        "type vxlan id 1 local 192.168.64.5 dev up0 dstport 8472 nolearning gbp",
        "type vxlan id 1 group 239.1.1.1 local 192.168.64.5 dev up0 dstport 8472 nolearning",
        "type vxlan id 1 dev up0 dstport 8472 nolearning",
        "type vxlan external dstport 8472",
    ],
)
def test_device_of_other_make_is_replaced(kernel: KernelNetwork, uplink: int, device: str) -> None:
    run(f"ip link add {OVERLAY} {device}")
    before = index_of(OVERLAY)
    desired = node(uplink) | peer(7)
    assert settle(kernel, scope(uplink), desired)[1] == []
    assert index_of(OVERLAY) != before
    assert there(kernel, scope(uplink)) == desired


def test_device_of_other_kind_is_left_alone(kernel: KernelNetwork, uplink: int) -> None:
    run(f"ip link add {OVERLAY} type bridge")
    before = index_of(OVERLAY)
    [failure] = kernel.apply([Put(vxlan(uplink))])
    assert "is a bridge device: rename or remove it" in str(failure.error)
    assert index_of(OVERLAY) == before


def test_deleted_device_comes_back_with_its_peers(kernel: KernelNetwork, uplink: int) -> None:
    desired = node(uplink) | peer(7)
    settle(kernel, scope(uplink), desired)
    run(f"ip link del {OVERLAY}")
    assert settle(kernel, scope(uplink), desired)[1] == []
    assert there(kernel, scope(uplink)) == desired


CHANGES = [
    "ip address add 10.1.77.1/32 dev flannel.1",
    "ip address del 10.1.5.0/32 dev flannel.1",
    "ip route del 10.1.7.0/24",
    "ip route replace 10.1.7.0/24 via 192.168.64.7 dev up0",
    "ip route replace 10.1.7.0/24 via 192.168.64.7 dev up0 proto 251",
    "ip route replace blackhole 10.1.7.0/24",
    "ip route add 10.1.9.0/24 dev flannel.1",
    "ip route add 10.1.9.0/24 via 10.1.9.0 dev flannel.1 onlink proto bird",
    "ip route add 10.1.9.0/24 via 192.168.64.9 proto 251",
    "ip route add blackhole 10.1.9.0/24 proto 251",
    "ip neigh replace 10.1.7.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
    "ip neigh replace 10.1.7.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud stale",
    "ip neigh del 10.1.7.0 dev flannel.1",
    "ip neigh add 10.1.9.0 lladdr 02:00:00:00:00:99 dev flannel.1 nud permanent",
    "bridge fdb replace 02:01:00:00:00:07 dev flannel.1 dst 172.16.9.9 self permanent",
    "bridge fdb del 02:01:00:00:00:07 dev flannel.1 self",
    "bridge fdb add 02:00:00:00:00:99 dev flannel.1 dst 172.16.9.9 self permanent",
    "sysctl -q -w net/ipv6/conf/flannel.1/accept_ra=1",
]


@pytest.mark.parametrize("change", CHANGES)
def test_change_from_outside_is_undone(kernel: KernelNetwork, uplink: int, change: str) -> None:
    desired = node(uplink) | peer(7)
    settle(kernel, scope(uplink), desired)
    run(change)
    count, failures = settle(kernel, scope(uplink), desired)
    assert (count > 0, failures) == (True, [])
    assert there(kernel, scope(uplink), wanted=wanted(desired)) == desired


@pytest.mark.parametrize("seed", range(4))
def test_any_sequence_of_changes_heals(kernel: KernelNetwork, uplink: int, seed: int) -> None:
    chance = random.Random(seed)
    device = [f"ip link del {OVERLAY}", f"ip link set {OVERLAY} down", f"ip link set {OVERLAY} mtu 1300"]
    desired = node(uplink)
    for _ in range(8):
        for command in chance.sample(CHANGES + device, chance.randint(1, 6)):
            subprocess.run(command.split(), capture_output=True, check=False, timeout=30)
        desired = node(uplink) | peer(7) | peer(chance.randint(10, 99))
        assert settle(kernel, scope(uplink), desired)[1] == []
        assert there(kernel, scope(uplink), wanted=wanted(desired)) == desired, f"seed {seed}"


def test_device_that_flanneld_made_is_right_as_it_is(kernel: KernelNetwork, uplink: int) -> None:
    run(
        f"ip link add {OVERLAY} mtu 1450 address {OWN_MAC}"
        f" type vxlan id 1 dev up0 local {PUBLIC_IP} dstport 8472 nolearning",
        f"ip address add {SUBNET.network_address}/32 dev {OVERLAY}",
        f"ip link set {OVERLAY} up",
        f"sysctl -q -w net/ipv6/conf/{OVERLAY}/accept_ra=0",
    )
    assert plan(node(uplink), there(kernel, scope(uplink))) == []


def test_udp_tunnel_has_an_address_and_the_networks_route(kernel: KernelNetwork, uplink: int) -> None:
    run("ip tuntap add flannel0 mode tun", "ip link set flannel0 up")
    where = Scope(NETWORK, SUBNET, "flannel0", uplink)
    desired: set[Object] = {
        TunLink("flannel0", 1472),
        LinkAddress("flannel0", IPv4Interface(f"{SUBNET.network_address}/32")),
        Route(NETWORK, None, "flannel0"),
    }
    assert settle(kernel, where, desired) == (3, [])
    assert there(kernel, where) == desired
    for change in ("down", "mtu 1400"):
        run(f"ip link set flannel0 {change}")
        assert settle(kernel, where, desired)[1] == []
        assert there(kernel, where) == desired
    assert settle(kernel, where, set()) == (3, [])
    assert there(kernel, where) == set()


FOREIGN = [
    "ip route add 10.1.200.0/24 via 192.168.64.9",  # inside Network, but not ours and not wanted
    "ip route add 10.99.0.0/16 via 192.168.64.9 proto 251",  # ours by number, outside Network
    "ip route add 10.99.1.0/24 via 10.1.9.0 dev flannel.1 onlink",
    "ip route add 10.1.9.0/24 via 192.168.64.9 proto 251 table 77",
    "ip route add 10.1.9.0/24 via 192.168.64.9 proto 251 metric 50",
    "ip route add blackhole 10.1.201.0/24",
    "ip neigh add 192.168.64.9 lladdr 02:00:00:00:00:98 dev up0 nud permanent",
    "ip neigh add 10.1.9.0 lladdr 02:00:00:00:00:98 dev flannel.1 nud stale",
    "bridge fdb append 00:00:00:00:00:00 dev flannel.1 dst 172.16.9.9 self permanent",
    "bridge fdb add 02:00:00:00:00:98 dev flannel.1 dst 172.16.9.9 self dynamic",
    "ip address add 172.30.0.1/24 dev flannel.1",
]


def foreign_state() -> list[str]:
    """Return what is there, but for what the kernel's own IPv6 adds when a link has been up for a while."""
    commands = ("ip route show table all", "ip neigh show", "bridge fdb show", "ip -o -4 address")
    lines = [line for command in commands for line in run(command).splitlines()]
    return sorted(line for line in lines if not re.search(r"^33:33:|fe80::|ff00::", line))


def test_foreign_objects_are_neither_read_nor_removed(kernel: KernelNetwork, uplink: int) -> None:
    desired = node(uplink)
    settle(kernel, scope(uplink), desired)
    run(*FOREIGN)
    before = foreign_state()
    settle(kernel, scope(uplink), desired | peer(7))
    assert there(kernel, scope(uplink)) == desired | peer(7)
    assert settle(kernel, scope(uplink), desired)[1] == []
    assert foreign_state() == before


def test_flanneld_routes_are_adopted_not_duplicated(kernel: KernelNetwork, uplink: int) -> None:
    settle(kernel, scope(uplink), node(uplink))
    run(
        "ip route add 10.1.7.0/24 via 10.1.7.0 dev flannel.1 onlink",
        "ip route add 10.1.9.0/24 via 192.168.64.9",
    )
    direct = Route(OTHER, IPv4Address("192.168.64.9"), "up0")
    desired = node(uplink) | peer(7) | {direct}
    ops = plan(desired, there(kernel, scope(uplink), wanted=wanted(desired)))
    olds = [op.old for op in ops if isinstance(op, Put) and isinstance(op.old, Route)]
    assert [old.protocol for old in olds] == [3, 3]
    assert kernel.apply(ops) == []
    assert run("ip route show 10.1.7.0/24") == "10.1.7.0/24 via 10.1.7.0 dev flannel.1 proto 251 onlink \n"
    assert run("ip route show 10.1.9.0/24") == "10.1.9.0/24 via 192.168.64.9 dev up0 proto 251 \n"


OTHERS = {
    "a static route": ["ip route add 10.1.7.0/24 via 192.168.64.99"],
    "a routing daemon's": ["ip route add 10.1.7.0/24 via 192.168.64.7 proto bird"],
    "a bridge's network": [
        "ip link add foreign type bridge",
        "ip address add 10.1.7.1/24 dev foreign",
        "ip link set foreign up",
    ],
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_route_that_is_not_ours_keeps_its_place(kernel: KernelNetwork, uplink: int, other: str) -> None:
    run(*OTHERS[other])
    before = run("ip route show 10.1.7.0/24")
    [failure] = settle(kernel, scope(uplink), node(uplink) | peer(7))[1]
    assert str(failure.error).endswith("dev flannel.1: File exists (a route that is not ours has its place)")
    assert run("ip route show 10.1.7.0/24") == before
    settle(kernel, scope(uplink), node(uplink))
    assert run("ip route show 10.1.7.0/24") == before


def test_what_flanneld_left_of_another_backend_is_replaced(kernel: KernelNetwork, uplink: int) -> None:
    """Its device stays, as flanneld lets it stay."""
    run(
        "ip link add flannel.7 type vxlan id 7 dev up0 local 192.168.64.1 dstport 8472 nolearning",
        "ip link set flannel.7 up",
        "ip route add 10.1.7.0/24 via 10.1.7.0 dev flannel.7 onlink",
        "ip route add 10.1.9.0/24 via 192.168.64.9",
    )
    desired = node(uplink) | peer(7) | {Route(OTHER, IPv4Address("192.168.64.9"), "up0")}
    assert settle(kernel, scope(uplink), desired)[1] == []
    assert "dev flannel.1 proto 251" in run("ip route show 10.1.7.0/24")


def test_peers_that_change_owner_keep_one_entry(kernel: KernelNetwork, uplink: int) -> None:
    settle(kernel, scope(uplink), node(uplink) | peer(7))
    moved = {obj for obj in peer(7) if isinstance(obj, Route)} | {
        Neighbour(OVERLAY, IPv4Address("10.1.7.0"), Mac.parse("02:01:00:00:00:09"))
    }
    desired = node(uplink) | moved | {obj for obj in peer(9) if type(obj).__name__ == "FdbEntry"}
    assert settle(kernel, scope(uplink), desired)[1] == []
    assert there(kernel, scope(uplink)) == desired  # flannel leaks the old FDB entry here


def test_host_gw_has_routes_only(kernel: KernelNetwork, uplink: int) -> None:
    where = scope(uplink, overlay="")
    desired: set[Object] = {
        Route(OTHER, IPv4Address("192.168.64.9"), "up0"),
        Route(IPv4Network("10.1.5.0/24"), None, "", blackhole=True),
    }
    assert settle(kernel, where, desired) == (2, [])
    assert there(kernel, where) == desired
    assert settle(kernel, where, set()) == (2, [])


def test_one_failure_stops_no_other(kernel: KernelNetwork, uplink: int) -> None:
    far = Route(OTHER, IPv4Address("203.0.113.1"), "up0")
    lost = Neighbour("flannel.9", IPv4Address("10.1.9.0"), OWN_MAC)
    desired = node(uplink) | peer(7) | {far, lost}
    _, failures = settle(kernel, scope(uplink), desired)
    assert {failure.op.obj for failure in failures} == {far, lost}
    by_object = {failure.op.obj: failure.error for failure in failures}
    assert isinstance(by_object[lost], DeviceMissing)
    said = (
        "put route 10.1.9.0/24 via 203.0.113.1 dev up0: Network is unreachable (Nexthop has invalid gateway)"
    )
    assert str(by_object[far]) == said
    assert str(by_object[lost]) == "device 'flannel.9' is not there"
    assert there(kernel, scope(uplink)) == node(uplink) | peer(7)


def test_sysctl_that_is_not_there_is_said(kernel: KernelNetwork, uplink: int) -> None:
    [failure] = kernel.apply([Put(Sysctl("net/ipv6/conf/flannel.9/accept_ra", "0"))])
    assert isinstance(failure.error, DeviceMissing)
    assert "flannel.9" in str(failure.error)


def test_vni_taken_by_another_device_is_said_in_the_kernels_words(kernel: KernelNetwork, uplink: int) -> None:
    run("ip link add other type vxlan id 1 local 192.168.64.5 dev up0 dstport 8472")
    [failure] = kernel.apply([Put(vxlan(uplink))])
    assert "device flannel.1 (vxlan id 1 dstport 8472 local 192.168.64.5)" in str(failure.error)
    assert "already exists" in str(failure.error)


def test_deleting_what_is_gone_is_no_failure(kernel: KernelNetwork, uplink: int) -> None:
    settle(kernel, scope(uplink), node(uplink))
    gone: list[Op] = [Delete(obj) for obj in [*peer(7), LinkAddress(OVERLAY, IPv4Interface("10.1.77.1/32"))]]
    assert kernel.apply(gone) == []
    run(f"ip link del {OVERLAY}")
    assert kernel.apply([*gone, Delete(vxlan(uplink))]) == []


def test_everything_of_ours_can_be_removed(kernel: KernelNetwork, uplink: int) -> None:
    before = foreign_state()
    settle(kernel, scope(uplink), node(uplink) | peer(7))
    kernel.apply([Delete(obj) for obj in there(kernel, scope(uplink))])
    assert foreign_state() == before


def test_two_networks_do_not_see_each_other(kernel: KernelNetwork, uplink: int) -> None:
    other = Scope(IPv4Network("10.2.0.0/16"), IPv4Network("10.2.5.0/24"), "flannel.2", uplink)
    second = VxlanLink("flannel.2", 2, 8472, PUBLIC_IP, uplink, 1450, OWN_MAC)
    route = Route(IPv4Network("10.2.7.0/24"), IPv4Address("10.2.7.0"), "flannel.2", onlink=True)
    settle(kernel, scope(uplink), node(uplink) | peer(7))
    assert settle(kernel, other, {second, route})[1] == []
    assert there(kernel, other) == {second, route}
    assert there(kernel, scope(uplink)) == node(uplink) | peer(7)


def test_five_thousand_peers(kernel: KernelNetwork, uplink: int) -> None:
    network = IPv4Network("10.0.0.0/8")
    where = Scope(network, IPv4Network("10.1.5.0/24"), OVERLAY, uplink)
    kernel.apply([Put(vxlan(uplink))])
    desired: set[Object] = {vxlan(uplink)}
    for number in range(512, 5512):
        desired |= peer(number, network)
    ops = plan(desired, kernel.read(kernel.look(), where))
    started = time.monotonic()
    failures = kernel.apply(ops)
    programmed = time.monotonic() - started
    started = time.monotonic()
    actual = set(kernel.read(kernel.look(), where))
    read = time.monotonic() - started
    log.info("5,000 peers: %d objects programmed in %.3f s, read in %.3f s", len(ops), programmed, read)
    assert failures == []
    assert actual == desired


def test_network_outside_is_not_read(kernel: KernelNetwork, uplink: int) -> None:
    settle(kernel, scope(uplink), node(uplink) | peer(7))
    elsewhere = IPv4Network("10.64.0.0/16")
    assert elsewhere != NETWORK
    assert there(kernel, scope(uplink, overlay="", network=elsewhere)) == set()
