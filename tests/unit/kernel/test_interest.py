"""Which routes' changes matter, over all of them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.kernel.interest import Interest

MAIN = 254
NETWORKS = [IPv4Network("10.1.0.0/16"), IPv4Network("192.168.64.0/24")]
peers = st.lists(st.ip_addresses(v=4), max_size=20)
prefixes = st.tuples(
    st.one_of(st.ip_addresses(v=4), st.sampled_from([IPv4Address("10.1.9.0")])), st.integers(0, 32)
)


@given(peers, prefixes)
def test_a_route_matters_inside_a_network_and_over_a_peer(
    addresses: list[IPv4Address], prefix: tuple[IPv4Address, int]
) -> None:
    interest = Interest()
    interest.tell(NETWORKS, addresses, [])
    route = IPv4Network(prefix, strict=False)
    expected = any(route.subnet_of(one) for one in NETWORKS) or any(peer in route for peer in addresses)
    place = int(route.network_address), route.prefixlen
    assert interest.matters(4, MAIN, *place) == expected
    assert not interest.matters(4, 100, *place)
    assert not interest.matters(6, MAIN, *place)


def test_before_the_first_pass_all_of_the_main_table_matters() -> None:
    assert Interest().matters(4, MAIN, 0, 0)
    assert not Interest().matters(4, 100, 0, 0)


def test_tables_of_rules_matter() -> None:
    interest = Interest()
    interest.tell([], [IPv4Address("203.0.113.9")], [52])
    assert interest.matters(4, 52, 0, 0)
    assert not interest.matters(4, 53, 0, 0)


def test_ipv6_has_its_own() -> None:
    interest = Interest()
    interest.tell([IPv6Network("fd00::/48")], [IPv6Address("2001:db8::1")], [])
    for text, expected in (
        ("fd00::/64", True),
        ("2001:db8::/32", True),
        ("2001:db9::/32", False),
        ("::/0", True),
    ):
        route = ip_network(text)
        assert interest.matters(6, MAIN, int(route.network_address), route.prefixlen) == expected
