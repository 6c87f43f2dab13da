"""Reservations in real etcd: leases that one node alone may take and that never expire."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from flannel_ebpf.base.errors import LeaseConflict
from flannel_ebpf.leases.lease_keeper import DAY
from tests.netns.etcd.lease_node import CONFIG, FAR, LeaseNode, in_etcd, running, ttl, value, vtep
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually


def test_a_reservation_is_taken_and_never_gets_a_ttl(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    registry.reserve(FAR, IPv4Address("192.168.0.1"))
    assert value(etcd) == '{"PublicIP":"192.168.0.1","PublicIPv6":null}'
    node = LeaseNode(etcd.options(), 1, ttl=3, margin=2)
    with running(node):
        assert node.keeper.lease.subnet == FAR
        node.keeper.update(IPv4Address("192.168.0.1"), vtep(5))
        eventually(lambda: "00:05" in value(etcd), "updated", 2)
        time.sleep(4)
        held = in_etcd(registry)
        assert held == node.keeper.lease
        assert held.etcd_lease == 0
    node.keeper.release()
    assert in_etcd(registry) == held
    assert LeaseNode(etcd.options(), 1).acquire() == replace(held, mod_revision=held.mod_revision + 1,
                                                            backend_data=vtep(1))  # fmt: skip


def test_a_reservation_is_not_taken_by_others(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    config = replace(CONFIG, subnet_min=IPv4Address("10.1.200.0"), subnet_max=IPv4Address("10.1.201.0"))
    registry.reserve(FAR, IPv4Address("192.168.0.1"))
    assert LeaseNode(etcd.options(), 2, config=config).acquire("10.1.200.0/24").subnet != FAR
    with pytest.raises(LeaseConflict, match=r"192\.168\.0\.1"):
        registry.reserve(FAR, IPv4Address("192.168.0.2"))


def test_reserving_and_unreserving_under_a_running_node(etcd: EtcdCluster) -> None:
    node, registry = LeaseNode(etcd.options(), 1), etcd.registry()
    with running(node):
        first = node.keeper.lease
        registry.reserve(first.subnet, node.public_ip)
        eventually(lambda: node.keeper.lease.etcd_lease == 0, "permanent", 2)
        assert registry.unreserve(first.subnet, ttl=600)
        eventually(lambda: node.keeper.lease.etcd_lease != 0, "an ordinary lease", 2)
        assert ttl(etcd, node.keeper.lease) > DAY - 10
        assert node.keeper.lease.create_revision == first.create_revision
        assert not registry.unreserve(first.subnet, ttl=600)
    registry.reserve(FAR, IPv4Address("192.168.0.2"))
    assert registry.unreserve(FAR, ttl=600)
    assert in_etcd(registry) is None
    assert not registry.unreserve(FAR, ttl=600)
