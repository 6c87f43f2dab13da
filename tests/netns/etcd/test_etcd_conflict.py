"""Two writers and one key, in real etcd: the first keeps it, and the other one notices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.errors import LeaseConflict
from flannel_ebpf.leases.etcd import EtcdClient, Registry
from tests.netns.etcd.lease_node import FAR, KEY, PREFIX, LeaseNode, claim, in_etcd, running, value, vtep
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually
from tests.samples import lease as lease_of

STRANGER = '{"PublicIP":"192.168.9.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:09:09"}}'  # noqa: E501 - one value


def test_a_stolen_key_is_given_up_and_not_written_over(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        node_key = node.keeper.lease.key
        etcd.ctl("put", node_key, STRANGER)
        eventually(lambda: node.lost, "lost")
        assert value(etcd, node_key) == STRANGER
        assert "192.168.9.9" in str(node.lost[0])
        assert str(node.keeper.lease.subnets[0]) in str(node.lost[0])
    assert len(node.lost) == 1


def test_a_renewal_never_overwrites_a_new_owner(etcd: EtcdCluster) -> None:
    """No watch runs: the renewal itself must find out (flannel issue 1289)."""
    node = LeaseNode(etcd.options(), 1, ttl=4)
    lease = node.acquire()
    etcd.ctl("put", lease.key, STRANGER)
    node.keeper.start()
    eventually(lambda: node.lost, "lost")
    assert value(etcd, lease.key) == STRANGER
    node.keeper.stop()


def test_a_subnet_taken_while_we_were_cut_off_is_lost(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "three", size=3) as etcd:
        options = etcd.options()
        node = LeaseNode(replace(options, endpoints=etcd.endpoints[:1]), 1)
        other = LeaseNode(replace(options, endpoints=etcd.endpoints[1:]), 2)
        with running(node):
            subnet = node.keeper.lease.subnets[0]
            etcd.members[0].kill()
            eventually(lambda: etcd.ctl("get", "x", endpoints=etcd.endpoints[1:]) == "", "a leader")
            etcd.ctl("del", node.keeper.lease.key, endpoints=etcd.endpoints[1:])
            assert other.acquire(str(subnet)).subnets[0] == subnet
            assert not node.lost
            etcd.start()
            eventually(lambda: node.lost, "lost")


def test_of_two_nodes_with_one_public_ip_the_newcomer_gives_way_and_says_so(etcd: EtcdCluster) -> None:
    first = LeaseNode(etcd.options(), 1)
    second = LeaseNode(etcd.options(), 2, public_ip="192.168.0.1")
    with running(first, second):
        eventually(lambda: second.lost, "the second gives up", 30)
        eventually(
            lambda: in_etcd(first.registry, *first.keeper.lease.subnets) == first.keeper.lease,
            "the lease is the first's",
        )
        assert not first.lost
        assert "needs a --public-ip of its own" in str(second.lost[0])


def test_a_key_that_another_node_has_taken_is_not_deleted(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    lease = node.acquire()
    etcd.ctl("put", lease.key, STRANGER)
    with pytest.raises(LeaseConflict):
        node.leave()
    assert value(etcd, lease.key) == STRANGER


def test_no_grant_stays_behind_when_a_write_loses(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    before = etcd.ctl("lease", "list").split()
    registry.create(lease_of(FAR, "1.1.1.1"), ttl=0)
    with pytest.raises(LeaseConflict):
        registry.create(lease_of(FAR, "2.2.2.2"), ttl=600)
    assert etcd.ctl("lease", "list").split() == before


def test_a_write_that_lost_the_race_changes_nothing(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    ours = registry.create(lease_of(FAR, "1.1.1.1"), ttl=600)
    grants = etcd.ctl("lease", "list").split()
    etcd.ctl("put", KEY, STRANGER)
    for late in (lambda: registry.rewrite(ours, ttl=600), lambda: registry.delete(ours)):
        with pytest.raises(LeaseConflict, match=KEY):
            late()
        assert value(etcd) == STRANGER
    assert etcd.ctl("lease", "list").split() == grants


def test_a_write_whose_answer_was_lost_is_recognised_as_ours(etcd: EtcdCluster) -> None:
    """The client repeats a request that a dying connection had already carried."""

    class Repeating(EtcdClient):
        def ask(self, name: str, request: Any) -> Any:
            if name == "KV/Txn":
                super().ask(name, request)
            return super().ask(name, request)

    registry = Registry(Repeating(etcd.options()), PREFIX)
    lease = registry.create(lease_of(FAR, "1.1.1.1", "host-gw"), ttl=600)
    assert in_etcd(registry) == lease
    lease = registry.rewrite(lease.with_claim(claim("1.1.1.2", vtep(2))), ttl=600)
    assert in_etcd(registry) == lease
    registry.delete(registry.snapshot().leases[0])
    assert in_etcd(registry) is None
