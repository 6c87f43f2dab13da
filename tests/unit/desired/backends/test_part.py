"""Which leases no backend could follow, judged as ipaddress would."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.family import NO_NODES, Family, Network
from flannel_ebpf.base.model import Lease, LeasePart, Mac, Uplink
from flannel_ebpf.desired.backends import Node, usable
from tests.samples import lease, stack

NETWORK, OWN = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
DUAL_CONFIG = parse_network_config(
    '{"Network":"10.1.0.0/16","EnableIPv6":true,"IPv6Network":"fc00::/48","Backend":{"Type":"vxlan"}}', "test"
)
UPLINK = Uplink(3, "eth0", IPv4Address("192.168.64.1"), 24, 1500, Mac(bytes(6)))
UPLINK6 = replace(UPLINK, ip=IPv6Address("fd00::1"), prefix_len=64)
IPV4 = Node((stack(CONFIG, UPLINK, "10.1.5.0/24"),))
DUAL = Node(
    (
        stack(DUAL_CONFIG, UPLINK, "10.1.5.0/24"),
        replace(stack(DUAL_CONFIG, UPLINK6, "fc00:0:0:5::/64"), pool=DUAL_CONFIG.pools[1]),
    )
)
addresses = st.integers(0, 0xFFFFFFFF).map(IPv4Address)
near = st.integers(0x09FF0000, 0x0A030000) | st.integers(0, 0xFFFFFFFF)
subnets = st.tuples(near, st.integers(1, 31)).map(lambda it: IPv4Network(it, strict=False))


@given(subnets, addresses)
@example(IPv4Network("10.0.0.0/15"), IPv4Address("192.168.64.7"))
@example(IPv4Network("10.1.0.0/16"), IPv4Address("127.1.2.3"))
@example(IPv4Network("10.1.7.0/24"), IPv4Address("239.255.255.255"))
@example(IPv4Network("10.1.7.0/24"), IPv4Address("255.255.255.255"))
@example(IPv4Network("10.1.7.0/24"), IPv4Address(0))
@example(IPv4Network("10.1.7.0/24"), IPv4Address("240.0.0.1"))
def test_a_lease_is_usable_or_skipped_with_the_reason(subnet: IPv4Network, ip: IPv4Address) -> None:
    found, skipped = usable(IPV4, [lease(subnet, ip)], {})
    nobody = any(ip in nobodys for nobodys in NO_NODES[Family.V4])
    harmful = subnet.overlaps(OWN) or IPv4Address("10.1.1.0") <= ip <= NETWORK.broadcast_address
    assert bool(found) == (subnet.subnet_of(NETWORK) and not nobody and (subnet == OWN or not harmful))
    assert [one.key for one in skipped] == ([] if found else [str(subnet)])


GOOD = LeasePart(IPv4Network("10.1.7.0/24"), IPv4Address("192.168.64.7"), "vxlan")
SUBNET6 = IPv6Network("fc00:0:0:7::/64")


@pytest.mark.parametrize(
    ("subnet", "ip", "flaw", "why"),
    [
        (SUBNET6, "fd00::7", "", ""),
        (SUBNET6, "fd00::7", "PublicIPv6 is 7: an IPv6 address is needed", "PublicIPv6 is 7"),
        (SUBNET6, "::", "", "public address :: is the address of no node"),
        (SUBNET6, "::1", "", "public address ::1 is the address of no node"),
        (SUBNET6, "fe80::7", "", "public address fe80::7 is the address of no node"),
        (SUBNET6, "ff02::1", "", "public address ff02::1 is the address of no node"),
        (SUBNET6, "::ffff:192.168.64.7", "", "is the address of no node"),
        (IPv6Network("fd00:0:0:7::/64"), "fd00::7", "", "outside the network fc00::/48"),
        (IPv6Network("fc00::/47"), "fd00::7", "", "outside the network fc00::/48"),
        (IPv6Network("fe80::/64"), "fd00::7", "", "outside the network fc00::/48"),
        (IPv6Network("ff00::/64"), "fd00::7", "", "outside the network fc00::/48"),
        (IPv6Network("::ffff:10.1.7.0/120"), "fd00::7", "", "outside the network fc00::/48"),
    ],
)
def test_a_family_that_cannot_be_followed_leaves_the_other_alone(
    subnet: Network, ip: str, flaw: str, why: str
) -> None:
    bad = LeasePart(subnet, ip_address(ip), "vxlan", flaw=flaw)
    found, skipped = usable(DUAL, [Lease((GOOD, bad))], {})
    assert found == ([GOOD] if why else [GOOD, bad])
    assert [one.key for one in skipped] == [str(subnet)] * bool(why)
    assert all(why in one.why for one in skipped)


def test_a_family_that_a_lease_lacks_is_named() -> None:
    found, skipped = usable(DUAL, [Lease((GOOD,))], {})
    assert (found, [(one.key, one.why) for one in skipped]) == (
        [GOOD],
        [("10.1.7.0/24", "has no IPv6 subnet")],
    )


def test_ipv6_of_the_others_is_no_matter_to_a_node_without_it() -> None:
    bad = LeasePart(SUBNET6, ip_address("::"), "vxlan")
    assert usable(IPV4, [Lease((GOOD, bad))], {}) == ([GOOD], [])
