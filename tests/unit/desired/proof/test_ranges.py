from __future__ import annotations

from ipaddress import IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.desired.proof import ranges

SPACE = range(24)
pairs = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3)), max_size=6)


def made(found: list[tuple[int, int]]) -> ranges.Ranges:
    return ranges.of((first, first + more) for first, more in found)


def as_set(found: ranges.Ranges) -> set[int]:
    return {number for number in SPACE for first, last in found if first <= number <= last}


@given(pairs, pairs)
def test_ranges_are_sets(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = made(one), made(other)
    assert as_set(ranges.both(a, b)) == as_set(a) & as_set(b)
    assert as_set(ranges.either(a, b)) == as_set(a) | as_set(b)
    assert as_set(ranges.without(a, b)) == as_set(a) - as_set(b)


@given(pairs, pairs)
def test_equal_sets_are_equal_ranges(one: list[tuple[int, int]], other: list[tuple[int, int]]) -> None:
    a, b = made(one), made(other)
    for found in (ranges.both(a, b), ranges.either(a, b), ranges.without(a, b)):
        assert found == ranges.exactly(*as_set(found))


def test_names_are_numbers_in_the_order_of_their_octets() -> None:
    cali = ranges.names_from(b"cali")
    assert ranges.both(ranges.names(["cali12", "cni0", "cal"]), cali) == ranges.names(["cali12"])
    assert ranges.both(ranges.names(["cali"]), cali) == ranges.names(["cali"])
    assert ranges.both(ranges.names([""]), cali) == ranges.NOTHING


def test_few_points_are_listed() -> None:
    assert ranges.points(((1, 3), (7, 7)), 4) == [1, 2, 3, 7]
    assert ranges.points(((1, 3), (7, 7)), 3) is None


def test_addresses_come_out_as_networks() -> None:
    subnet = ranges.of_network(IPv4Network("10.1.45.0/24"))
    rest = ranges.without(subnet, ranges.exactly(subnet[0][0]))
    assert [str(one) for one in ranges.networks4(rest)][:3] == [
        "10.1.45.1/32",
        "10.1.45.2/31",
        "10.1.45.4/30",
    ]
