"""Reservations in real etcd: leases that one node alone may take and that never expire."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.leases.lease_keeper import DAY
from tests.netns.etcd.lease_node import (
    CONFIG_TEXT,
    FAR,
    LeaseNode,
    claim,
    in_etcd,
    operate,
    running,
    ttl,
    value,
    vtep,
)
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually


def test_a_reservation_is_taken_and_never_gets_a_ttl(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    registry.set_network_config(CONFIG_TEXT)
    assert operate(etcd, "reserve", str(FAR), "--public-ip=192.168.0.1") == 0
    assert value(etcd) == '{"PublicIP":"192.168.0.1","PublicIPv6":null}'
    node = LeaseNode(etcd.options(), 1, ttl=3)
    with running(node):
        assert node.keeper.lease.subnets[0] == FAR
        node.keeper.update(claim("192.168.0.1", vtep(5)))
        eventually(lambda: "00:05" in value(etcd), "updated")
        time.sleep(4)  # longer than an ordinary lease of this node lives
        held = in_etcd(registry)
        assert held == node.keeper.lease
        assert held.etcd_lease == 0
    assert in_etcd(registry) == held
    again = LeaseNode(etcd.options(), 1)
    assert again.acquire() == replace(held.with_claim(again.claim), mod_revision=held.mod_revision + 1)


def test_a_reservation_is_not_taken_by_others(etcd: EtcdCluster, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG_TEXT.replace("10.1.70.0", "10.1.200.0")[:-1] + ',"SubnetMax":"10.1.201.0"}'
    etcd.registry().set_network_config(text)
    assert operate(etcd, "reserve", str(FAR), "--public-ip=192.168.0.1") == 0
    config = parse_network_config(text, "test")
    assert LeaseNode(etcd.options(), 2, config=config).acquire("10.1.200.0/24").subnets[0] != FAR
    assert operate(etcd, "reserve", str(FAR), "--public-ip=192.168.0.2") == 1
    assert "belongs to 192.168.0.1" in capsys.readouterr().err


def test_reserving_and_unreserving_under_a_running_node(etcd: EtcdCluster) -> None:
    node, registry = LeaseNode(etcd.options(), 1), etcd.registry()
    registry.set_network_config(CONFIG_TEXT)
    with running(node):
        first = node.keeper.lease
        subnet = str(first.subnets[0])
        assert operate(etcd, "reserve", subnet, f"--public-ip={first.public_ip}") == 0
        eventually(lambda: node.keeper.lease.etcd_lease == 0, "permanent")
        assert operate(etcd, "unreserve", subnet) == 0
        eventually(lambda: node.keeper.lease.etcd_lease != 0, "an ordinary lease")
        assert ttl(etcd, node.keeper.lease) > DAY - 60
        assert node.keeper.lease.create_revision == first.create_revision
        assert operate(etcd, "unreserve", subnet) == 1


def test_an_unused_reservation_is_freed_at_once_or_after_a_day(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    registry.set_network_config(CONFIG_TEXT)
    assert operate(etcd, "reserve", str(FAR), "--public-ip=192.168.0.2") == 0
    assert operate(etcd, "unreserve", str(FAR)) == 0
    lease = in_etcd(registry)
    assert lease is not None
    assert DAY - 60 < ttl(etcd, lease) <= DAY
    assert operate(etcd, "reserve", str(FAR), "--public-ip=192.168.0.2") == 0
    assert operate(etcd, "unreserve", "--now", str(FAR)) == 0
    assert in_etcd(registry) is None
