"""Which leases no backend could follow, judged as ipaddress would."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from hypothesis import example, given
from hypothesis import strategies as st

from flannel_ebpf.base.model import Lease
from flannel_ebpf.desired.backends import part

NETWORK = IPv4Network("10.1.0.0/16")
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
    usable, skipped = part(NETWORK, [Lease(subnet, ip)])
    nobody = ip.is_unspecified or ip.is_loopback or ip.is_multicast or ip == IPv4Address("255.255.255.255")
    assert bool(usable) == (subnet.subnet_of(NETWORK) and not nobody)
    assert [one.key for one in skipped] == ([] if usable else [str(subnet)])
