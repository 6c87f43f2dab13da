"""Which uplink the flags choose: flannel's table, on a host with four interfaces."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import Uplink
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import find_uplinks
from tests.netns.kernel.space import run


@pytest.fixture
def host(namespace: None) -> None:
    for number in range(3):
        run(f"ip link add eth{number} type veth peer far{number}")
        run(f"ip link set eth{number} up", f"ip link set far{number} up")
    run(
        "ip address add 169.254.7.7/16 dev eth0",
        "ip address add 192.168.64.5/24 dev eth0",
        "ip address add 192.168.64.6/24 dev eth0",
        "ip address add 10.20.0.5/16 dev eth1",
        "ip address add 10.20.0.9/32 dev eth1",
        "ip route add default via 192.168.64.1 metric 200",
        "ip route add default via 10.20.0.1 metric 100",
        "ip route add 203.0.113.0/24 via 192.168.64.1",
    )


def find(**flags: object) -> Uplink:
    with RouteSocket() as netlink:
        [found] = find_uplinks(Seen(netlink), **flags)  # type: ignore[arg-type]  # a table of keyword arguments
        return found


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ("eth1", "10.20.0.5", 16)),
        ({"iface": ["eth0"]}, ("eth0", "192.168.64.5", 24)),
        ({"iface": ["192.168.64.6"]}, ("eth0", "192.168.64.6", 24)),
        ({"iface": ["169.254.7.7"]}, ("eth0", "169.254.7.7", 16)),
        ({"iface": ["none", "eth1"]}, ("eth1", "10.20.0.5", 16)),
        ({"iface": ["none"], "iface_regex": ["^eth0$"]}, ("eth0", "192.168.64.5", 24)),
        ({"iface_regex": [r"^192\.168\."]}, ("eth0", "192.168.64.5", 24)),
        ({"iface_regex": [r"^10\.20\..*\.9$"]}, ("eth1", "10.20.0.9", 32)),
        ({"iface_regex": ["nothing", "th1"]}, ("eth1", "10.20.0.5", 16)),
        ({"can_reach": "203.0.113.9"}, ("eth0", "192.168.64.5", 24)),
        ({"can_reach": "8.8.8.8"}, ("eth1", "10.20.0.5", 16)),
        ({"public_ips": {Family.V4: IPv4Address("192.168.64.6")}}, ("eth0", "192.168.64.6", 24)),
        (
            {"iface": ["eth0"], "public_ips": {Family.V4: IPv4Address("198.51.100.7")}},
            ("eth0", "192.168.64.5", 24),
        ),
    ],
)
def test_choice(host: None, flags: dict[str, object], expected: tuple[str, str, int]) -> None:
    found = find(**flags)
    assert (found.name, str(found.ip), found.prefix_len) == expected
    assert found.mtu == 1500


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"iface": ["none"]}, "--iface: 'none' cannot be used: a name or address among lo 127.0.0.1/8, eth0"),
        ({"iface_regex": ["["]}, "--iface-regex: '[' cannot be used: a regular expression"),
        ({"iface_regex": ["nothing"]}, "--iface-regex: 'nothing' cannot be used"),
        ({"iface": ["eth2"]}, "--iface: 'eth2' cannot be used: an interface with an IPv4 address"),
        ({"can_reach": "somewhere"}, "--iface-can-reach: 'somewhere' cannot be used: an IPv4 address"),
        (
            {"public_ips": {Family.V4: IPv4Address("198.51.100.7")}},
            "--public-ip: '198.51.100.7' cannot be used",
        ),
    ],
)
def test_unmatched_flag_is_named(host: None, flags: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        find(**flags)
    assert said in str(caught.value)


def test_no_default_route_is_said(host: None) -> None:
    run("ip route del default", "ip route del default")
    with pytest.raises(ConfigError, match="default route: 'none' cannot be used: one, or --iface"):
        find()
    with pytest.raises(ConfigError, match=r"--iface-can-reach: '8\.8\.8\.8'"):
        find(can_reach="8.8.8.8")
