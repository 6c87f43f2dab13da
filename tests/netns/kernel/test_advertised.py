"""Hosts that live by router advertisements: real ones, sent by the other end of the uplink."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from ipaddress import IPv6Network

import pytest
from scapy.layers.inet6 import ICMPv6ND_RA, ICMPv6NDOptPrefixInfo, ICMPv6NDOptSrcLLAddr, IPv6
from scapy.layers.l2 import Ether

from flannel_ebpf.base.family import Family
from flannel_ebpf.kernel import advertised
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import find_uplinks
from tests.namespaces import inside, new_namespace
from tests.netns.kernel.space import run
from tests.polls import eventually

PREFIX = IPv6Network("2001:db8:7::/64")
ROUTER_MAC = "02:00:00:00:00:01"


@pytest.fixture
def host() -> Iterator[None]:
    """Be in a host whose `eth0` has its address and default route from advertisements of the other end."""
    host, router = new_namespace(), new_namespace()
    try:
        with inside(host):
            run(
                "ip link set lo up",
                f"ip link add eth0 type veth peer router netns /proc/{os.getpid()}/fd/{router}",
            )
            run("sysctl -q -w net/ipv6/conf/eth0/accept_dad=0", "ip link set eth0 up")
            with inside(router):
                run("ip link set router up")
            eventually(lambda: believes(router), "a default route")
            yield
    finally:
        os.close(host)
        os.close(router)


def believes(router: int) -> bool:
    """Advertise, and say whether that was believed: not before the kernel has noticed that the link is up."""
    with inside(router):
        advertise()
    return "proto ra" in run("ip -6 route show default")


def advertise() -> None:
    """Send one advertisement out of `router`, as radvd would: a prefix, and a default router."""
    prefix = ICMPv6NDOptPrefixInfo(
        prefixlen=PREFIX.prefixlen,
        prefix=str(PREFIX.network_address),
        validlifetime=3600,
        preferredlifetime=1800,
    )
    advertisement = ICMPv6ND_RA(routerlifetime=1800) / ICMPv6NDOptSrcLLAddr(lladdr=ROUTER_MAC) / prefix
    frame = Ether(src=ROUTER_MAC, dst="33:33:00:00:00:01") / IPv6(src="fe80::1", dst="ff02::1", hlim=255)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind(("router", 0))
        sock.send(bytes(frame / advertisement))


def said() -> list[str]:
    """What is said of the uplink that a node would choose."""
    with RouteSocket() as netlink:
        seen = Seen(netlink)
        [uplink] = find_uplinks(seen, (Family.V6,), iface=("eth0",))
        return list(advertised.warnings(seen, uplink))


def test_a_host_that_lives_by_advertisements_is_told_before_it_forwards(host: None) -> None:
    [text] = said()
    assert "as soon as it forwards" in text
    assert text.endswith("sysctl -w net.ipv6.conf.eth0.accept_ra=2")


def test_it_is_told_when_it_forwards_and_what_it_is_told_helps(host: None) -> None:
    run("sysctl -q -w net/ipv6/conf/all/forwarding=1")
    assert "proto ra" not in run("ip -6 route show default"), "the kernel's own doing"
    [text] = said()
    assert "now that it forwards" in text
    run(text.split(": ")[-1].replace("sysctl", "sysctl -q"))
    assert said() == []


def test_a_host_with_an_address_of_its_own_is_left_alone(host: None) -> None:
    run("ip -6 route flush proto ra", "ip -6 address flush dev eth0 scope global")
    run("ip address add 2001:db8:8::1/64 dev eth0 nodad")
    assert said() == []
