"""One lease written by anybody: what it may not take away from a node, and what it may."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import Lease, Mac, Skipped, Uplink
from flannel_ebpf.desired.backends import Node, Surroundings, peers, usable
from tests.samples import lease, stack

OWN_MAC = Mac(bytes.fromhex("020000000005"))
UPLINK = Uplink(2, "eth0", IPv4Address("192.168.64.1"), 24, 1500, Mac(bytes(6)))


def node(network: str = "10.1.0.0/16", subnet: str = "10.1.5.0/24") -> Node:
    config = parse_network_config(f'{{"Network": "{network}", "Backend": {{"Type": "vxlan"}}}}', "test")
    return Node((stack(config, UPLINK, subnet, OWN_MAC),))


AROUND = Surroundings(
    {
        ip_address("192.168.64.1"): "an address of eth0",
        ip_address("192.168.64.9"): "an address of eth0",
        ip_address("192.168.64.254"): "a gateway of this host",
        ip_address("10.1.200.7"): "the server that leases come from",
        ip_address("10.1.99.1"): "an address of docker0",
    },
    {ip_network("10.1.99.0/24"): "the network of docker0"},
    {
        ip_address("192.168.64.0"): "that of no node on the uplink's network",
        ip_address("192.168.64.255"): "that of no node on the uplink's network",
        ip_address("192.168.64.9"): "an address of eth0 on this host",
    },
)


def vxlan(subnet: str, ip: str, age: int, mac: int = 1) -> Lease:
    return lease(subnet, ip, "vxlan", {"VtepMAC": f"02:00:00:00:00:{mac:02x}"}, create_revision=age)


def followed(
    here: Node, leases: Sequence[Lease], around: Surroundings | None = None
) -> tuple[list[str], list[Skipped]]:
    parts, harmful = usable(here, leases, {Family.V4: around} if around else {})
    found, contested = peers(here, parts, {})
    return [str(peer.subnet) for peer in found], [*harmful, *contested]


GOOD = vxlan("10.1.7.0/24", "192.168.64.7", 5, mac=7)


@pytest.mark.parametrize(
    ("subnet", "ip", "why"),
    [
        ("10.1.8.0/24", "192.168.64.8", ""),
        ("10.1.5.0/25", "192.168.64.8", "overlaps 10.1.5.0/24, this node's own subnet"),
        ("10.1.5.2/31", "192.168.64.8", "overlaps 10.1.5.0/24, this node's own subnet"),
        ("10.1.4.0/22", "192.168.64.8", "overlaps 10.1.5.0/24, this node's own subnet"),
        ("10.1.0.0/17", "192.168.64.8", "overlaps 10.1.5.0/24, this node's own subnet"),
        ("10.1.7.128/25", "192.168.64.8", "overlaps 10.1.7.0/24, which was there before"),
        ("10.1.6.0/23", "192.168.64.8", "overlaps 10.1.7.0/24, which was there before"),
        ("10.1.200.0/24", "192.168.64.8", "holds 10.1.200.7, the server that leases come from"),
        ("10.1.200.4/30", "192.168.64.8", "holds 10.1.200.7, the server that leases come from"),
        ("10.1.200.0/30", "192.168.64.8", ""),
        ("10.1.99.128/25", "192.168.64.8", "overlaps 10.1.99.0/24, the network of docker0"),
        ("10.1.98.0/23", "192.168.64.8", "holds 10.1.99.1, an address of docker0"),
        ("10.1.8.0/24", "192.168.64.255", "public address 192.168.64.255 is that of no node"),
        ("10.1.8.0/24", "192.168.64.0", "public address 192.168.64.0 is that of no node"),
        ("10.1.8.0/24", "192.168.64.9", "public address 192.168.64.9 is an address of eth0"),
        ("10.1.8.0/24", "192.168.64.254", ""),  # a node may be the others' gateway
        ("10.1.8.0/24", "10.1.7.2", "public address 10.1.7.2 lies in the overlay network itself"),
        ("10.1.8.0/24", "10.1.8.1", "public address 10.1.8.1 lies in the overlay network itself"),
        ("10.1.8.0/24", "10.1.5.1", "public address 10.1.5.1 lies in the overlay network itself"),
    ],
)
def test_what_one_lease_may_not_take(subnet: str, ip: str, why: str) -> None:
    bad = vxlan(subnet, ip, 6, mac=6)
    found, skipped = followed(node(), [bad, GOOD], AROUND)
    assert [one.why.partition(" on th")[0] for one in skipped] == [why] * bool(why)
    assert found == ["10.1.7.0/24"] + [subnet] * (not why)


def test_our_own_lease_and_a_former_one_are_no_harm() -> None:
    ours = lease("10.1.5.0/24", "192.168.64.1", create_revision=3)
    former = lease("10.1.6.0/24", "192.168.64.1", create_revision=2)
    assert followed(node(), [ours, former, GOOD], AROUND) == (["10.1.7.0/24"], [])


def test_a_lan_may_hold_the_pods_network() -> None:
    """10.0.0.5/8 and 10.1.0.0/16: routes to leases are more specific than the link's."""
    wide = Surroundings({ip_address("10.0.0.5"): "an address of eth0"})
    member = vxlan("10.1.7.0/24", "10.0.0.7", 1)
    assert followed(node(), [member], wide) == (["10.1.7.0/24"], [])


def test_a_part_of_the_network_that_nobody_may_lease_can_be_the_nodes() -> None:
    config = parse_network_config(
        '{"Network": "10.0.0.0/8", "SubnetMin": "10.64.0.0", "Backend": {"Type": "vxlan"}}', "test"
    )
    here = Node((stack(config, UPLINK, "10.64.5.0/24"),))
    assert followed(here, [vxlan("10.64.7.0/24", "10.0.0.7", 1)]) == (["10.64.7.0/24"], [])


places = st.integers(0, 0x3FF).map(lambda number: 0x0A010000 + (number << 6))
subnets = st.builds(lambda at, length: IPv4Network((at, length), strict=False), places, st.integers(17, 28))


@given(st.lists(subnets, max_size=30, unique=True))
def test_of_leases_that_overlap_the_older_one_is_followed(drawn: list[IPv4Network]) -> None:
    leases = [vxlan(str(subnet), f"192.168.65.{n}", n, mac=n + 9) for n, subnet in enumerate(drawn, 1)]
    own = IPv4Network("10.1.5.0/24")
    expected: list[IPv4Network] = []
    for subnet in drawn:
        if not any(subnet.overlaps(older) for older in [own, *expected]):
            expected.append(subnet)
    found, skipped = followed(node(), list(reversed(leases)))
    assert found == list(map(str, sorted(expected)))
    assert len(found) + len(skipped) + (own in drawn) == len(drawn)


def test_a_lease_may_not_hold_another_nodes_address() -> None:
    """Both lie in a part of the network that the config leaves to nodes."""
    config = parse_network_config(
        '{"Network": "10.0.0.0/8", "SubnetMin": "10.64.0.0", "Backend": {"Type": "vxlan"}}', "test"
    )
    here = Node((stack(config, UPLINK, "10.64.5.0/24", OWN_MAC),))
    member, later = vxlan("10.64.7.0/24", "10.0.0.7", 2, mac=7), vxlan("10.0.0.0/24", "192.168.64.8", 3)
    assert followed(here, [member, later]) == (
        ["10.64.7.0/24"],
        [Skipped("10.0.0.0/24", "holds 10.0.0.7, another node's address", contest=True)],
    )
    earlier = vxlan("10.0.0.0/24", "192.168.64.8", 1)
    assert followed(here, [member, earlier]) == (
        ["10.0.0.0/24"],
        [
            Skipped(
                "10.64.7.0/24",
                "public address 10.0.0.7 lies in 10.0.0.0/24, which was there before",
                contest=True,
            )
        ],
    )


def test_leases_that_cannot_be_followed_take_nothing() -> None:
    odd = lease("10.1.4.0/22", "192.168.64.8", "host-gw", create_revision=1)
    inside = vxlan("10.1.6.0/24", "192.168.64.6", 2)
    found, skipped = followed(node(subnet="10.1.9.0/24"), [odd, inside])
    assert (found, [one.key for one in skipped]) == (["10.1.6.0/24"], ["10.1.4.0/22"])


def test_a_second_node_with_a_vtep_mac_is_left_out_until_the_first_is_gone() -> None:
    first, second, again = (
        vxlan("10.1.9.0/24", "192.168.64.9", 1),
        vxlan("10.1.8.0/24", "192.168.64.8", 2),
        vxlan("10.1.10.0/24", "192.168.64.9", 3),
    )
    found, [skipped] = followed(node(), [second, again, first])
    assert found == ["10.1.9.0/24", "10.1.10.0/24"]
    assert (skipped.key, skipped.contest) == ("10.1.8.0/24", True)
    assert skipped.why == "VtepMAC 02:00:00:00:00:01 is that of 192.168.64.9 already"
    assert followed(node(), [second]) == (["10.1.8.0/24"], [])
    own = vxlan("10.1.8.0/24", "192.168.64.8", 2, mac=5)
    assert followed(node(), [own])[0] == []


def test_a_crowd_of_nodes_harms_nobody() -> None:
    crowd = [
        lease(
            IPv4Network((0x0A000000 + (n << 8), 24)),
            IPv4Address(0xC0A90000 + n),
            "vxlan",
            {"VtepMAC": f"02:00:00:01:{n >> 8:02x}:{n & 255:02x}"},
        )
        for n in range(1, 9000)
    ]
    found, skipped = followed(node("10.0.0.0/8", "10.200.0.0/24"), crowd)
    assert (len(found), skipped) == (8999, [])
