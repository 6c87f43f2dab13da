"""Dual stack in real etcd: a key names two subnets, and no two nodes ever end with one of either family."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_network
from threading import Barrier

import pytest

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import Claim, Endpoint, Lease
from flannel_ebpf.leases.snapshot import Snapshot
from tests.netns.etcd.lease_node import SUBNETS, LeaseNode, running, vtep
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually

TWO_OF_EACH = parse_network_config(
    '{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.0","SubnetMax":"10.1.2.0","EnableIPv6":true,'
    '"IPv6Network":"fc00::/48","IPv6SubnetMin":"fc00:0:0:1::","IPv6SubnetMax":"fc00:0:0:2::",'
    '"Backend":{"Type":"vxlan"}}',
    "test",
)
STRANGER = '{"PublicIP":"192.168.9.9","PublicIPv6":"fd00::9:9","BackendType":"host-gw"}'


def node(etcd: EtcdCluster, number: int) -> LeaseNode:
    made = LeaseNode(etcd.options(), number, config=TWO_OF_EACH)
    ipv6 = Endpoint(ip_network(f"fd00::{number}").network_address, vtep(number))
    made.claim = Claim("vxlan", (*made.claim.endpoints, ipv6))
    return made


def between(done: Callable[[], None], call: Callable[..., Snapshot]) -> Callable[..., Snapshot]:
    """Return `call` with `done` happening once, right after its first answer."""
    todo = [done]

    def wrapped(*arguments: Snapshot) -> Snapshot:
        answer = call(*arguments)
        if todo:
            todo.pop()()
        return answer

    return wrapped


@pytest.mark.race
def test_nodes_that_allocate_at_once_share_nothing(
    etcd: EtcdCluster, race_tries: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    nodes = [node(etcd, number) for number in (1, 2)]
    start = Barrier(len(nodes))

    def acquire(one: LeaseNode) -> Lease:
        start.wait()
        return one.acquire()

    with ThreadPoolExecutor(len(nodes)) as pool:
        for _ in range(race_tries):
            leases = list(pool.map(acquire, nodes))
            held = [subnet for lease in leases for subnet in lease.subnets]
            assert len(set(held)) == 4, leases
            found = nodes[0].registry.snapshot()
            by_key = sorted(leases, key=lambda lease: lease.key)
            assert (sorted(found.leases, key=lambda lease: lease.key), found.skipped) == (by_key, ())
            for one in nodes:
                one.registry.delete(one.keeper.lease)
    for one in nodes:
        one.stop()
    yielded = sum("was there before" in record.getMessage() for record in caplog.records)
    assert yielded, "nobody ever had to give way: the nodes did not race"


def test_the_later_of_two_gives_way_in_both_families(etcd: EtcdCluster) -> None:
    first, second = node(etcd, 1), node(etcd, 2)
    # the second reads, then the first allocates, then the second creates what looked free
    second.registry.snapshot = between(first.start, second.registry.snapshot)  # type: ignore[method-assign]
    second.start()
    try:
        assert not set(first.keeper.lease.subnets) & set(second.keeper.lease.subnets)
        eventually(lambda: first.sees(*first.keeper.lease.subnets, *second.keeper.lease.subnets), "both")
        assert not first.lost
    finally:
        first.stop()
        second.stop()


def test_the_earlier_of_two_stays_although_it_sees_the_other(etcd: EtcdCluster) -> None:
    first = node(etcd, 1)
    seen: list[Lease] = []

    def look(before: Snapshot) -> Snapshot:
        """Another node's key comes between our creation and our second look."""
        mine = first.registry.snapshot().leases[0]
        free = {"fc00:0:0:1::", "fc00:0:0:2::"} - {str(mine.subnets[1].network_address)}
        etcd.ctl("put", f"{SUBNETS}/{str(mine.subnets[0]).replace('/', '-')}&{free.pop()}-64", STRANGER)
        found = first.registry.snapshot()
        seen.extend(found.leases)
        return found

    first.registry.snapshot_since = look  # type: ignore[method-assign]
    with running(first):
        assert len(seen) == 2
        assert first.keeper.lease in seen
        assert [one.subnets[0].version for one in seen if one != first.keeper.lease] == [6]
        assert not first.lost


def test_a_subnet_of_one_family_that_went_to_another_while_our_key_was_away_is_lost(
    etcd: EtcdCluster,
) -> None:
    mine = node(etcd, 1)
    with running(mine):
        lease = mine.keeper.lease
        etcd.ctl("put", f"{SUBNETS}/{str(lease.subnets[0]).replace('/', '-')}&fc00:0:0:9::-64", STRANGER)
        eventually(lambda: mine.view.skipped, "the stranger is told of")
        assert lease in mine.view.leases, "whoever was first stays"
        assert not mine.lost
        etcd.ctl("del", lease.key)
        eventually(lambda: mine.lost, "given up")
        assert "192.168.9.9" in str(mine.lost[0])
        eventually(lambda: lease.key not in etcd.ctl("get", "--prefix", "--keys-only", SUBNETS), "taken back")
