"""Many nodes on one etcd: starts at the same instant, poison keys, and an etcd that loses its data."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from threading import Barrier

import pytest

from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.errors import OutOfSubnets
from flannel_ebpf.base.model import Lease
from flannel_ebpf.leases.snapshot_guard import LINGER
from tests.netns.etcd.lease_node import GRACE, LeaseNode, in_etcd, running
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually

NODES = 20


def config_of(subnets: int) -> NetworkConfig:
    """A network config with `subnets` subnets to lease."""
    last = IPv4Address("10.1.1.0") + 256 * (subnets - 1)
    return parse_network_config(
        f'{{"Network":"10.1.0.0/16","SubnetMin":"10.1.1.0","SubnetMax":"{last}","Backend":{{"Type":"vxlan"}}}}',
        "test",
    )


def start_together(
    etcd: EtcdCluster, config: NetworkConfig
) -> tuple[list[LeaseNode], list[Lease | OutOfSubnets]]:
    """Let all nodes acquire at the same instant; return them and what each got."""
    nodes = [LeaseNode(etcd.options(), number, config=config) for number in range(1, NODES + 1)]
    barrier = Barrier(NODES)

    def acquire(node: LeaseNode) -> Lease | OutOfSubnets:
        node.registry.network_config()  # connected before the start
        barrier.wait()
        try:
            return node.acquire()
        except OutOfSubnets as error:
            return error

    with ThreadPoolExecutor(NODES) as pool:
        return nodes, list(pool.map(acquire, nodes))


def test_twenty_nodes_share_twenty_four_subnets(etcd: EtcdCluster) -> None:
    nodes, results = start_together(etcd, config_of(24))
    leases = [result for result in results if isinstance(result, Lease)]
    assert len({lease.subnets[0] for lease in leases}) == NODES
    assert sorted(nodes[0].registry.snapshot().leases, key=str) == sorted(leases, key=str)


def test_sixteen_subnets_for_twenty_nodes_and_the_others_get_one_when_it_is_free(etcd: EtcdCluster) -> None:
    nodes, results = start_together(etcd, config_of(16))
    winners = [node for node, result in zip(nodes, results, strict=True) if isinstance(result, Lease)]
    losers = [node for node, result in zip(nodes, results, strict=True) if isinstance(result, OutOfSubnets)]
    assert (len(winners), len(losers)) == (16, 4)
    assert len({node.keeper.lease.subnets[0] for node in winners}) == 16
    for loser, winner in zip(losers, winners, strict=False):
        with pytest.raises(OutOfSubnets):
            loser.acquire()
        winner.leave()
        assert loser.acquire().subnets[0] == winner.keeper.lease.subnets[0]


GOOD = '{"PublicIP":"10.0.0.1"}'
POISON = {
    "": "a directory of old",
    "hello": "world",
    "10.1.202.0": "{}",
    "10.1.202.0-24": "not json",
    "10.1.203.0-24": '{"PublicIP":7}',
    "10.1.204.0-24": '{"PublicIP":"10.0.0.1","BackendType":[]}',
    "10.1.205.0-24": "\x01\x02",
    "10.1.206.0-24": "[" * 20_000,
    "10.1.207.0-32": GOOD,
    "10.1.208.1-24": GOOD,
    "300.1.208.0-24": GOOD,
    "10.1.210.0-" + "4" * 5000: GOOD,
    "fc00::-64": GOOD,
}


def test_poison_is_counted_and_changes_nothing_else(etcd: EtcdCluster) -> None:
    nodes = [LeaseNode(etcd.options(), number) for number in (1, 2)]
    with running(*nodes):
        own = [node.keeper.lease.subnets[0] for node in nodes]
        for node in nodes:
            eventually(partial(node.sees, *own), "both leases")
        for beside in ("", "-ebpf/10.1.209.0-24"):
            etcd.ctl("put", "--", f"{nodes[0].registry.watched.rstrip('/')}{beside}", GOOD)
        for number, (suffix, text) in enumerate(POISON.items(), 1):
            etcd.ctl("put", "--", f"{nodes[0].registry.watched}{suffix}", text)
            for node in nodes:
                counted = partial(lambda node, number: len(node.view.skipped) == number, node, number)
                eventually(counted, f"poison {suffix[:20]!r} is counted")
                assert node.sees(*own)
                assert not node.removed
        assert all(item.why for item in nodes[0].view.skipped)
        third = LeaseNode(etcd.options(), 3)
        with running(third):
            eventually(lambda: third.sees(*own, third.keeper.lease.subnets[0]), "a new node comes up")


def test_our_own_key_poisoned_is_mended(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        lease = node.keeper.lease
        etcd.ctl("put", lease.key, "garbage")
        eventually(lambda: node.sees(lease.subnets[0]), "written again")
        eventually(lambda: node.keeper.lease.mod_revision > lease.mod_revision + 1, "noticed")
        assert node.keeper.lease.etcd_lease != 0
        assert not node.lost


def test_poison_on_the_previous_subnet_does_not_stop_a_start(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    etcd.ctl("put", f"{node.registry.watched}10.1.200.0-24", "garbage")
    assert node.acquire("10.1.200.0/24").subnets[0] != IPv4Network("10.1.200.0/24")


@pytest.mark.parametrize("fault", ["wiped", "restored", "all keys deleted"])
def test_an_etcd_that_lost_its_data_costs_no_peer(tmp_path: Path, fault: str) -> None:
    """Every node writes the same key again, and until all have done so no peer is removed."""
    with EtcdCluster(tmp_path / "three", size=3) as etcd:
        nodes = [LeaseNode(etcd.options(), number) for number in range(1, 6)]
        with running(nodes[0]):
            if fault == "restored":
                etcd.save(tmp_path / "backup")
            with running(*nodes[1:]):
                subnets = [node.keeper.lease.subnets[0] for node in nodes]
                eventually(lambda: all(node.sees(*subnets) for node in nodes), "all see all")
                if fault == "wiped":
                    etcd.wipe()
                elif fault == "restored":
                    etcd.restore(tmp_path / "backup")
                else:
                    etcd.ctl("del", "--prefix", nodes[0].registry.watched)
                eventually(lambda: all(node.sees(*subnets) for node in nodes), "all see all again", 15)
                for node in nodes:
                    assert node.keeper.lease.subnets[0] in subnets
                    assert not node.removed
                    assert not node.lost


def test_a_node_that_left_is_removed_soon_and_after_a_wipe_when_grace_is_over(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "one") as etcd:
        nodes = [LeaseNode(etcd.options(), number) for number in range(1, 4)]
        with running(nodes[0]):
            with running(*nodes[1:]):
                eventually(lambda: len(nodes[0].peers) == 2, "two peers")
                nodes[2].keeper.stop()
                nodes[2].leave()
                gone = nodes[2].keeper.lease.subnets[0]
                eventually(lambda: nodes[0].removed == [gone], "removed", LINGER + 10)
            wiped = time.monotonic()
            etcd.wipe()
            own = nodes[0].keeper.lease.subnets[0]
            eventually(lambda: in_etcd(nodes[0].registry, own), "alone in the new etcd")
            assert nodes[0].peers == {nodes[1].keeper.lease.subnets[0]}
            eventually(lambda: not nodes[0].peers, "removed after the grace period", GRACE + 10)
            assert time.monotonic() - wiped > GRACE
