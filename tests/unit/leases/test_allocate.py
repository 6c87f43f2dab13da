"""choose(): flannel's order of preference, and a free subnet whenever there is one."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.config import NetworkConfig, VxlanConfig
from flannel_ebpf.base.errors import OutOfSubnets
from flannel_ebpf.base.model import Lease
from flannel_ebpf.leases.allocate import CANDIDATES, Reuse, Try, choose

OURS = IPv4Address("192.168.0.1")
OTHER = IPv4Address("192.168.0.2")
CONFIG = NetworkConfig(
    network=IPv4Network("10.1.0.0/16"),
    subnet_len=24,
    subnet_min=IPv4Address("10.1.1.0"),
    subnet_max=IPv4Address("10.1.255.0"),
    enable_nftables=False,
    backend=VxlanConfig(),
)


def lease(subnet: str, public_ip: IPv4Address = OTHER, etcd_lease: int = 7) -> Lease:
    return Lease(IPv4Network(subnet), public_ip, etcd_lease=etcd_lease)


def chosen(leases: list[Lease], previous: str | None = None, config: NetworkConfig = CONFIG) -> Reuse | Try:
    return choose(config, leases, OURS, None if previous is None else IPv4Network(previous), Random(1))


def test_a_lease_with_our_address_is_reused() -> None:
    mine = lease("10.1.9.0/24", OURS)
    assert chosen([lease("10.1.5.0/24"), mine], previous="10.1.7.0/24") == Reuse(mine)


def test_of_several_a_reservation_comes_first_then_the_previous_subnet_then_the_lowest() -> None:
    low, middle, high = (lease(f"10.1.{n}.0/24", OURS) for n in (3, 4, 5))
    assert chosen([high, middle, low]) == Reuse(low)
    assert chosen([high, middle, low], previous="10.1.4.0/24") == Reuse(middle)
    reserved = replace(high, etcd_lease=0)
    assert chosen([reserved, middle, low], previous="10.1.4.0/24") == Reuse(reserved)


@pytest.mark.parametrize(
    "unfit",
    [
        lease("10.1.0.0/24", OURS),
        lease("10.2.5.0/24", OURS),
        lease("10.1.4.0/23", OURS),
        replace(lease("10.1.5.0/24", OURS), subnet6=IPv6Network("fc00::/64")),
    ],
    ids=["below SubnetMin", "outside Network", "other length", "dual stack"],
)
def test_a_lease_the_config_rules_out_is_stale(unfit: Lease) -> None:
    choice = chosen([unfit], previous="10.1.5.0/24")
    assert choice == Try(IPv4Network("10.1.5.0/24"), stale=(unfit,))


def test_a_reservation_the_config_rules_out_is_left_alone() -> None:
    reserved = lease("10.1.4.0/23", OURS, etcd_lease=0)
    assert chosen([reserved], previous="10.1.9.0/24") == Try(IPv4Network("10.1.9.0/24"))
    assert chosen([reserved], previous="10.1.5.0/24") != Try(IPv4Network("10.1.5.0/24"))


@pytest.mark.parametrize("blocked", ["10.1.7.0/24", "10.1.6.0/23", "10.1.7.128/25"])
def test_the_previous_subnet_is_tried_only_while_free(blocked: str) -> None:
    assert chosen([], previous="10.1.7.0/24") == Try(IPv4Network("10.1.7.0/24"))
    assert chosen([lease(blocked)], previous="10.1.7.0/24") != Try(IPv4Network("10.1.7.0/24"))


def test_out_of_subnets_names_the_range() -> None:
    tight = replace(CONFIG, subnet_max=IPv4Address("10.1.2.0"))
    assert chosen([lease("10.1.1.0/24")], config=tight) == Try(IPv4Network("10.1.2.0/24"))
    with pytest.raises(OutOfSubnets, match=r"10\.1\.1\.0 and SubnetMax 10\.1\.2\.0: 2 leases"):
        chosen([lease("10.1.1.0/24"), lease("10.1.2.0/24")], config=tight)
    with pytest.raises(OutOfSubnets):
        chosen([], config=replace(CONFIG, subnet_max=IPv4Address("10.1.0.0")))


def test_a_big_network_is_not_walked_to_its_end() -> None:
    big = replace(
        CONFIG,
        network=IPv4Network("10.0.0.0/8"),
        subnet_len=30,
        subnet_min=IPv4Address("10.0.0.4"),
        subnet_max=IPv4Address("10.255.255.252"),
    )
    picks = {choose(big, [], OURS, None, Random(seed)).subnet for seed in range(2000)}  # type: ignore[union-attr]  # nothing to reuse
    assert len(picks) == CANDIDATES
    assert max(picks) == IPv4Network((int(big.subnet_min) + 4 * (CANDIDATES - 1), 30))
    assert chosen([lease("10.0.0.0/9")], config=big).subnet >= IPv4Network("10.128.0.0/30")  # type: ignore[union-attr]  # as above


lengths = st.integers(16, 29)
subnets = st.tuples(st.integers(0, 0xFFFF), lengths).map(
    lambda pair: IPv4Network((0x0A010000 + pair[0], pair[1]), strict=False)
)


@given(st.lists(subnets, max_size=30), st.integers(18, 28), st.integers(0, 2**32))
def test_the_choice_is_free_and_exists_when_one_exists(
    taken: list[IPv4Network], length: int, seed: int
) -> None:
    size = 1 << (32 - length)
    network = IPv4Network("10.1.0.0/16")
    config = replace(CONFIG, subnet_len=length, subnet_min=network[size], subnet_max=network[-1] - (size - 1))
    free = [
        subnet
        for subnet in list(network.subnets(new_prefix=length))[1:]
        if not any(subnet.overlaps(other) for other in taken)
    ]
    leases = [Lease(subnet, OTHER) for subnet in taken]
    if not free:
        with pytest.raises(OutOfSubnets):
            choose(config, leases, OURS, None, Random(seed))
        return
    choice = choose(config, leases, OURS, None, Random(seed))
    assert isinstance(choice, Try)
    assert choice.subnet in free[:CANDIDATES]
