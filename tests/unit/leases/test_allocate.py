"""choose(): flannel's order of preference, and a free subnet whenever there is one."""

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.config import NetworkConfig, Pool, VxlanConfig
from flannel_ebpf.base.errors import OutOfSubnets
from flannel_ebpf.base.model import Claim, Endpoint, Lease
from flannel_ebpf.leases.allocate import CANDIDATES, Reuse, Try, choose, rival
from tests.samples import claim
from tests.samples import lease as sample

OURS = IPv4Address("192.168.0.1")
OTHER = IPv4Address("192.168.0.2")
POOL = Pool(IPv4Network("10.1.0.0/16"), 24, IPv4Address("10.1.1.0"), IPv4Address("10.1.255.0"))


def config_of(*pools: Pool) -> NetworkConfig:
    return NetworkConfig(pools, enable_nftables=False, backend=VxlanConfig())


CONFIG = config_of(POOL)


def lease(subnet: str, public_ip: IPv4Address = OTHER, etcd_lease: int = 7) -> Lease:
    return sample(subnet, public_ip, etcd_lease=etcd_lease)


def chosen(leases: list[Lease], previous: str | None = None, config: NetworkConfig = CONFIG) -> Reuse | Try:
    before = [] if previous is None else [IPv4Network(previous)]
    return choose(config, leases, claim(OURS), before, Random(1))


def trial(subnet: str, stale: tuple[Lease, ...] = ()) -> Try:
    return Try((IPv4Network(subnet),), stale)


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
        replace(
            lease("10.1.5.0/24", OURS),
            parts=lease("10.1.5.0/24", OURS).parts + sample("fc00::/64", "fd00::1").parts,
        ),
    ],
    ids=["below SubnetMin", "outside Network", "other length", "dual stack"],
)
def test_a_lease_the_config_rules_out_is_stale(unfit: Lease) -> None:
    choice = chosen([unfit], previous="10.1.5.0/24")
    assert choice == trial("10.1.5.0/24", stale=(unfit,))


def test_a_reservation_the_config_rules_out_is_left_alone() -> None:
    reserved = lease("10.1.4.0/23", OURS, etcd_lease=0)
    assert chosen([reserved], previous="10.1.9.0/24") == trial("10.1.9.0/24")
    assert chosen([reserved], previous="10.1.5.0/24") != trial("10.1.5.0/24")


@pytest.mark.parametrize("blocked", ["10.1.7.0/24", "10.1.6.0/23", "10.1.7.128/25"])
def test_the_previous_subnet_is_tried_only_while_free(blocked: str) -> None:
    assert chosen([], previous="10.1.7.0/24") == trial("10.1.7.0/24")
    assert chosen([lease(blocked)], previous="10.1.7.0/24") != trial("10.1.7.0/24")


def test_out_of_subnets_names_the_range() -> None:
    tight = config_of(replace(POOL, subnet_max=IPv4Address("10.1.2.0")))
    assert chosen([lease("10.1.1.0/24")], config=tight) == trial("10.1.2.0/24")
    with pytest.raises(OutOfSubnets, match=r"10\.1\.1\.0 and SubnetMax 10\.1\.2\.0: 2 leases"):
        chosen([lease("10.1.1.0/24"), lease("10.1.2.0/24")], config=tight)
    with pytest.raises(OutOfSubnets):
        chosen([], config=config_of(replace(POOL, subnet_max=IPv4Address("10.1.0.0"))))


def test_a_big_network_is_not_walked_to_its_end() -> None:
    pool = Pool(IPv4Network("10.0.0.0/8"), 30, IPv4Address("10.0.0.4"), IPv4Address("10.255.255.252"))
    big = config_of(pool)
    picks = {choose(big, [], claim(OURS), [], Random(seed)).subnets[0] for seed in range(2000)}  # type: ignore[union-attr]  # nothing to reuse
    assert len(picks) == CANDIDATES
    assert max(picks) == IPv4Network((int(pool.subnet_min) + 4 * (CANDIDATES - 1), 30))
    assert chosen([lease("10.0.0.0/9")], config=big).subnets[0] >= IPv4Network("10.128.0.0/30")  # type: ignore[union-attr]  # as above


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
    config = config_of(Pool(network, length, network[size], network[-1] - (size - 1)))
    free = [
        subnet
        for subnet in list(network.subnets(new_prefix=length))[1:]
        if not any(subnet.overlaps(other) for other in taken)
    ]
    leases = [sample(subnet, OTHER) for subnet in taken]
    if not free:
        with pytest.raises(OutOfSubnets):
            choose(config, leases, claim(OURS), [], Random(seed))
        return
    choice = choose(config, leases, claim(OURS), [], Random(seed))
    assert isinstance(choice, Try)
    assert choice.subnets[0] in free[:CANDIDATES]


POOL6 = Pool(IPv6Network("fc00::/48"), 64, IPv6Address("fc00:0:0:1::"), IPv6Address("fc00:0:0:ffff::"))
DUAL = config_of(POOL, POOL6)
US = Claim("vxlan", (Endpoint(OURS), Endpoint(IPv6Address("fd00::1"))))


def dual(subnet: str, subnet6: str, node: Claim = US, etcd_lease: int = 7, created: int = 5) -> Lease:
    lease = Lease.of([ip_network(subnet), ip_network(subnet6)], node)
    return replace(lease, etcd_lease=etcd_lease, create_revision=created)


THEM = Claim("vxlan", (Endpoint(OTHER), Endpoint(IPv6Address("fd00::2"))))


def dual_choice(leases: list[Lease], *previous: str) -> Reuse | Try:
    return choose(DUAL, leases, US, [ip_network(text) for text in previous], Random(1))


def test_a_dual_stack_lease_is_known_by_the_ipv4_address() -> None:
    mine = dual("10.1.5.0/24", "fc00:0:0:5::/64")
    assert dual_choice([mine]) == Reuse(mine)
    moved = Claim("vxlan", (Endpoint(OURS), Endpoint(IPv6Address("fd00::99"))))
    assert dual_choice([mine.with_claim(moved)]) == Reuse(mine.with_claim(moved))
    other = Claim("vxlan", (Endpoint(OTHER), Endpoint(IPv6Address("fd00::1"))))
    assert isinstance(dual_choice([mine.with_claim(other)]), Try)


@pytest.mark.parametrize(
    "unfit",
    [
        lease("10.1.5.0/24", OURS),
        dual("10.1.5.0/24", "fc00::/64"),
        dual("10.1.5.0/24", "fc00:0:0:4::/63"),
        dual("10.2.5.0/24", "fc00:0:0:5::/64"),
    ],
    ids=["IPv4 alone", "below IPv6SubnetMin", "other length", "outside Network"],
)
def test_each_family_must_fit_the_config(unfit: Lease) -> None:
    choice = dual_choice([unfit], "10.1.5.0/24", "fc00:0:0:5::/64")
    assert choice == Try((ip_network("10.1.5.0/24"), ip_network("fc00:0:0:5::/64")), (unfit,))


def test_a_previous_subnet_of_one_family_is_kept_where_that_of_the_other_is_taken() -> None:
    theirs = dual("10.1.9.0/24", "fc00:0:0:5::/64", THEM)
    choice = dual_choice([theirs], "10.1.5.0/24", "fc00:0:0:5::/64")
    assert isinstance(choice, Try)
    assert choice.subnets[0] == ip_network("10.1.5.0/24")
    assert choice.subnets[1] != ip_network("fc00:0:0:5::/64")


@pytest.mark.parametrize(
    ("theirs", "yields"),
    [
        (dual("10.1.5.0/24", "fc00:0:0:9::/64", THEM, created=4), True),
        (dual("10.1.9.0/24", "fc00:0:0:5::/64", THEM, created=4), True),
        (dual("10.1.5.0/24", "fc00:0:0:9::/64", THEM, created=6), False),
        (dual("10.1.9.0/24", "fc00:0:0:9::/64", THEM, created=4), False),
        (dual("10.1.5.0/24", "fc00:0:0:5::/64", US, created=4), False),
        (lease("10.1.4.0/23"), True),
    ],
    ids=["IPv4 shared", "IPv6 shared", "they were later", "nothing shared", "ours", "another length"],
)
def test_whoever_was_there_first_keeps_a_shared_subnet(theirs: Lease, yields: bool) -> None:
    mine = dual("10.1.5.0/24", "fc00:0:0:5::/64")
    assert rival(mine, [mine, theirs]) == (theirs if yields else None)
    assert isinstance(dual_choice([mine, theirs]), Try) == yields


def test_no_subnet_of_one_family_names_its_range() -> None:
    tight = config_of(POOL, replace(POOL6, subnet_max=IPv6Address("fc00:0:0:1::")))
    with pytest.raises(OutOfSubnets, match=r"no free IPv6 /64 between SubnetMin fc00:0:0:1::"):
        choose(tight, [dual("10.1.9.0/24", "fc00:0:0:1::/64", THEM)], US, [], Random(1))
