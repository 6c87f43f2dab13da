"""The pods' ports, and the way to a peer, as the kernel tells them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import PathFacts, PodPort, Uplink
from flannel_ebpf.desired.objects import Direction, Filter, Route
from flannel_ebpf.desired.plan import Put
from flannel_ebpf.kernel.hooks import ownership
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.paths import Paths, ask_paths, path_facts
from flannel_ebpf.kernel.pods import pod_ports
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import find_uplinks, follow
from tests.netns.kernel.space import PUBLIC_IP, SUBNET, TinyProgram, index_of, run, scope
from tests.netns.tcx_stranger import attach, detach


@pytest.fixture
def netlink(uplink: int) -> Generator[RouteSocket, None, None]:
    with RouteSocket() as socket:
        yield socket


def ports(netlink: RouteSocket) -> list[PodPort]:
    return pod_ports(Seen(netlink), [SUBNET])


def paths(netlink: RouteSocket, addresses: Sequence[IPv4Address], by: Uplink) -> Paths:
    return path_facts(Seen(netlink), addresses, by).paths


@pytest.fixture
def bridge(uplink: int) -> int:
    run("ip link add cni0 type bridge", "ip address add 10.1.5.1/24 dev cni0", "ip link set cni0 up")
    run("ip link add docker9 type bridge", "ip address add 172.17.0.1/16 dev docker9")
    return index_of("cni0")


def pod(name: str, master: str = "") -> int:
    run(f"ip link add {name} type veth peer {name}-in", f"ip link set {name} up")
    if master:
        run(f"ip link set {name} master {master}")
    return index_of(name)


def test_ports_are_the_bridges_veths(netlink: RouteSocket, bridge: int) -> None:
    first, second = pod("v1", "cni0"), pod("v2", "cni0")
    pod("elsewhere", "docker9")
    pod("free")
    expected = [PodPort(first, "v1", bridge), PodPort(second, "v2", bridge)]
    assert ports(netlink) == expected
    run("ip link set v1 master docker9", "ip link del v2")
    assert ports(netlink) == []


def test_ptp_veth_with_a_host_route_is_a_port(netlink: RouteSocket, uplink: int) -> None:
    ptp = pod("ptp")
    run("ip route add 10.1.5.9/32 dev ptp", "ip route add 10.1.77.9/32 dev up0")
    assert ports(netlink) == [PodPort(ptp, "ptp")]


@pytest.mark.parametrize(
    ("command", "shaped"),
    [
        ("tc qdisc add dev v1 root tbf rate 1mbit burst 32kbit latency 50ms", True),
        ("tc qdisc add dev v1 root htb", True),
        ("tc qdisc add dev v1 ingress", True),
        ("tc qdisc add dev v1 root pfifo", False),
        ("tc qdisc add dev v1 clsact", False),
    ],
)
def test_shaping_qdisc_is_seen(netlink: RouteSocket, bridge: int, command: str, shaped: bool) -> None:
    pod("v1", "cni0")
    run(command)
    assert [port.shaped for port in ports(netlink)] == [shaped]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_foreign_tcx_program_is_seen_ours_is_not(
    netlink: RouteSocket, bridge: int, monkeypatch: pytest.MonkeyPatch, direction: Direction
) -> None:
    pod("v1", "cni0")
    ours = attach("v1", direction, "fl_from_pod")
    with monkeypatch.context() as known:
        known.setattr(ownership, "is_foreign", lambda number: number != ours)
        assert [port.shaped for port in ports(netlink)] == [False]
    assert [port.shaped for port in ports(netlink)] == [True], "a name alone makes it not ours"
    detach("v1", direction)
    assert [port.shaped for port in ports(netlink)] == [False]


@pytest.mark.parametrize("direction", ["ingress", "egress"])
def test_foreign_filter_is_seen_ours_is_not(
    netlink: RouteSocket, bridge: int, uplink: int, direction: str
) -> None:
    port = pod("v1", "cni0")
    with TinyProgram.make() as tiny, KernelNetwork() as kernel:
        ours = Filter(port, "ingress", "fl_from_pod", tiny.info().id, "clsact")
        assert kernel.hooks.apply([Put(ours)], scope(uplink), {"fl_from_pod": tiny.fd}) == []
    assert [port.shaped for port in ports(netlink)] == [False]
    run(f"tc filter add dev v1 {direction} protocol all pref 7 u32 match u32 0 0 classid 1:1")
    assert [port.shaped for port in ports(netlink)] == [True]


def test_uplink_as_it_is_now(netlink: RouteSocket, uplink: int) -> None:
    first = find_uplinks(Seen(netlink), iface=["up0"])[0]
    assert (first.ifindex, first.ip, first.prefix_len, first.mtu) == (uplink, PUBLIC_IP, 24, 1500)

    def now() -> Uplink | None:
        seen = Seen(netlink)
        return follow(first, seen.links, seen.addresses(Family.V4))

    assert now() == first
    run("ip link set up0 down", "ip link set up0 name renamed mtu 1400", "ip link set renamed up")
    assert now() == replace(first, name="renamed", mtu=1400)
    run(f"ip address del {PUBLIC_IP}/24 dev renamed")
    assert now() is None


def test_path_facts_follow_routing(netlink: RouteSocket, uplink: int) -> None:
    run(
        "ip route add default via 192.168.64.1",
        "ip route add 172.20.0.0/16 via 192.168.64.1 mtu 1400",
        "ip route add 172.21.0.0/16 dev up0 mtu 1300",
        "ip route add 192.168.64.128/25 via 192.168.64.1",
        "ip route add unreachable 172.22.0.0/16",
        "ip route add unreachable 192.168.64.64/28",
        "ip route add blackhole 192.168.64.20",
    )
    now = find_uplinks(Seen(netlink), iface=["up0"])[0]
    expected = {
        "192.168.64.9": PathFacts(1500, on_link=True),
        "192.168.64.200": PathFacts(1500, on_link=False),
        "8.8.8.8": PathFacts(1500, on_link=False),
        "172.20.0.1": PathFacts(1400, on_link=False),
        "172.21.0.1": PathFacts(1300, on_link=True),
        "172.22.0.1": KERNEL_ONLY,
        "192.168.64.65": KERNEL_ONLY,
        "192.168.64.20": KERNEL_ONLY,
    }
    asked = [IPv4Address(text) for text in expected]
    facts = {IPv4Address(text): facts for text, facts in expected.items()}
    assert paths(netlink, asked, now) == facts
    assert ask_paths(netlink, asked, now) == facts


KERNEL_ONLY = PathFacts(1500, on_link=False, kernel_only=True)
THERE = IPv4Address("192.168.64.9")
FAR = IPv4Address("203.0.113.9")
ELSEWHERE = [
    # Another device, as of a VPN or a second NIC.
    (["ip route add 192.168.64.9/32 dev vpn0"], THERE),
    (["ip route add 192.168.64.9/32 via 172.31.0.2"], THERE),
    # Another table, for our source address, for all, or for all that a VPN has not marked.
    (["ip rule add from 192.168.64.5 lookup 100", "ip route add default dev vpn0 table 100"], THERE),
    (["ip rule add to 192.168.64.0/28 lookup 100", "ip route add default dev vpn0 table 100"], THERE),
    (["ip rule add not fwmark 51820 lookup 1000", "ip route add default dev vpn0 table 1000"], THERE),
    (["ip rule add from 192.168.64.5 blackhole"], THERE),
    # Several next hops, of which the kernel takes turns.
    (
        [
            "ip route add 203.0.113.0/24 nexthop via 192.168.64.1 nexthop via 192.168.64.2",
        ],
        FAR,
    ),
    (["ip route add 192.168.64.9/32 nexthop dev vpn0 nexthop dev up0"], THERE),
    # A tunnel that the route itself makes, and no route at all.
    (["ip route add 192.168.64.9/32 encap ip id 7 dst 172.31.0.2 dev vpn0"], THERE),
    ([], FAR),
]


@pytest.mark.parametrize(("commands", "peer"), ELSEWHERE)
def test_a_way_that_is_not_by_the_uplink_is_the_kernels_alone(
    netlink: RouteSocket, uplink: int, commands: list[str], peer: IPv4Address
) -> None:
    run("ip link add vpn0 type veth peer vpn1", "ip address add 172.31.0.1/24 dev vpn0")
    run("ip link set vpn0 up", "ip link set vpn1 up")
    now = find_uplinks(Seen(netlink), iface=["up0"])[0]
    if peer == THERE:
        assert not paths(netlink, [peer], now)[peer].kernel_only
    for command in commands:
        run(command)
    assert paths(netlink, [peer], now)[peer].kernel_only
    assert ask_paths(netlink, [peer], now)[peer].kernel_only


HARMLESS = [
    "ip rule add from 10.99.0.0/16 lookup 100",
    "ip rule add to 10.99.0.0/16 lookup 100",
    "ip rule add iif up1 lookup 100",
    "ip rule add fwmark 0x80000/0xff0000 lookup 100",
    "ip rule add from all lookup main suppress_prefixlength 0",
    "ip rule add from all lookup 52",
]


@pytest.mark.parametrize("rule", HARMLESS)
def test_rules_for_others_change_no_way(netlink: RouteSocket, uplink: int, rule: str) -> None:
    run("ip route add default via 192.168.64.1", "ip route add blackhole default table 100")
    now = find_uplinks(Seen(netlink), iface=["up0"])[0]
    before = paths(netlink, [THERE, FAR], now)
    run(rule)
    assert paths(netlink, [THERE, FAR], now) == before
    assert not any(facts.kernel_only for facts in before.values())


def test_path_facts_of_a_wide_lan_with_thousands_of_routes_inside(netlink: RouteSocket, uplink: int) -> None:
    """The pods' network may lie inside the uplink's own prefix: 10.0.0.5/8 and 10.1.0.0/16."""
    run("ip address add 10.0.0.5/8 dev up0")
    wide = find_uplinks(Seen(netlink), iface=["10.0.0.5"])[0]
    with KernelNetwork() as kernel:
        gateway = IPv4Address("10.0.0.9")
        nets = [IPv4Network((int(IPv4Address("10.64.0.0")) + n * 256, 24)) for n in range(5000)]
        assert kernel.apply([Put(Route(net, gateway, "up0")) for net in nets]) == []
    asked = [IPv4Address("10.2.0.0") + number for number in range(5000)]
    facts = paths(netlink, [*asked, IPv4Address("10.64.7.1")], wide)
    assert all(facts[address].on_link for address in asked)
    assert not facts[IPv4Address("10.64.7.1")].on_link
