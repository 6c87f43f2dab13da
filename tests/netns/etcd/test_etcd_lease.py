"""LeaseKeeper against real etcd: one node's lease through everything that can happen to it."""

from __future__ import annotations

import time
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import ConfigError, LeaseError
from flannel_ebpf.leases import lease_keeper
from flannel_ebpf.leases.lease_keeper import DAY, LeaseKeeper
from tests.netns.etcd.lease_node import (
    CONFIG,
    FAR,
    KEY,
    PREFIX,
    SUBNETS,
    LeaseNode,
    claim,
    in_etcd,
    running,
    ttl,
    value,
    vtep,
)
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually


def test_the_key_is_flanneld_s_byte_for_byte_and_lives_a_day(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    lease = node.acquire("10.1.200.0/24")
    assert not node.keeper.reused
    assert etcd.ctl("get", "--prefix", "--keys-only", SUBNETS).split() == [KEY]
    assert value(etcd) == (
        '{"PublicIP":"192.168.0.1","PublicIPv6":null,"BackendType":"vxlan",'
        '"BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}'
    )
    assert DAY - 5 < ttl(etcd, lease) <= DAY


def test_a_restarted_node_takes_its_own_lease_over(etcd: EtcdCluster) -> None:
    with running(LeaseNode(etcd.options(), 1)):
        pass
    first = LeaseNode(etcd.options(), 1).registry.snapshot().leases[0]
    again = LeaseNode(etcd.options(), 1, backend_data=vtep(99))
    lease = again.acquire("10.1.3.0/24")
    assert again.keeper.reused
    assert (lease.subnets[0], lease.create_revision) == (first.subnets[0], first.create_revision)
    assert lease.etcd_lease != first.etcd_lease
    assert in_etcd(again.registry, lease.subnets[0]) == lease
    assert lease.claim == again.claim


def test_renewal_is_a_new_grant_and_outlives_the_ttl_many_times(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1, ttl=10)  # a busy machine may leave us alone for seconds
    with running(node):
        first, text = node.keeper.lease, value(etcd, node.keeper.lease.key)
        time.sleep(11)  # longer than the first grant lives
        now = in_etcd(node.registry, first.subnets[0])
        assert now is not None
        assert now.create_revision == first.create_revision
        assert now.etcd_lease not in (0, first.etcd_lease)
        assert value(etcd, first.key) == text
    eventually(lambda: in_etcd(etcd.registry(), first.subnets[0]) is None, "it expires without its node", 15)


def test_a_renewal_due_while_etcd_is_away_is_made_up(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "own") as etcd:
        node = LeaseNode(etcd.options(), 1, ttl=6)
        with running(node):
            first = node.keeper.lease
            etcd.kill()
            time.sleep(3)  # it is due after 2
            assert node.keeper.lease == first
            etcd.start()
            eventually(lambda: node.keeper.lease.etcd_lease != first.etcd_lease, "renewed")
            assert node.keeper.lease.create_revision == first.create_revision
            assert not node.lost


def test_time_spent_suspended_counts(etcd: EtcdCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keeper's clock jumps by a day, as CLOCK_BOOTTIME does over a suspend; waits know nothing of it."""
    monkeypatch.setattr(lease_keeper, "LONGEST_WAIT", 0.2)
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        first = node.keeper.lease
        time.sleep(0.6)
        assert node.keeper.lease == first
        now = lease_keeper._now
        monkeypatch.setattr(lease_keeper, "_now", lambda: now() + DAY)
        eventually(lambda: node.keeper.lease.etcd_lease != first.etcd_lease, "renewed")


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_an_own_key_that_vanished_is_written_again_at_once(etcd: EtcdCluster, how: str) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        first = node.keeper.lease
        if how == "deleted":
            etcd.ctl("del", first.key)
        else:
            etcd.ctl("lease", "revoke", f"{first.etcd_lease:x}")
        eventually(lambda: node.keeper.lease != first, "written again")
        lease = node.keeper.lease
        assert in_etcd(node.registry, first.subnets[0]) == lease
        assert (lease.key, lease.claim) == (first.key, first.claim)
        assert ttl(etcd, lease) > DAY - 10
        assert not node.lost


def test_one_edit_of_our_lease_is_simply_undone_and_unknown_fields_stay(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        key, original = node.keeper.lease.key, value(etcd, node.keeper.lease.key)
        grant = f"--lease={node.keeper.lease.etcd_lease:x}"
        etcd.ctl("put", grant, key, '{"publicip":"192.168.0.1","BackendType":"udp","Rack":{"n":[1,2]}}')
        wanted = original[:-1] + ',"Rack":{"n":[1,2]}}'
        eventually(lambda: value(etcd, key) == wanted, "written again")
        node.keeper.update(claim("192.168.0.1", vtep(7)))
        eventually(lambda: '"VtepMAC":"02:00:00:00:00:07"' in value(etcd, key), "updated")
        assert value(etcd, key).endswith(',"Rack":{"n":[1,2]}}')
        assert not node.lost


def test_a_new_address_and_vtep_are_written_in_place(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        first = node.keeper.lease
        node.keeper.update(claim("192.168.0.200", vtep(200)))
        eventually(lambda: node.keeper.lease != first, "updated")
        lease = node.keeper.lease
        assert in_etcd(node.registry, first.subnets[0]) == lease
        assert lease.claim == claim("192.168.0.200", vtep(200))
        assert lease.create_revision == first.create_revision
        time.sleep(0.3)
        assert node.keeper.lease == lease
    again = LeaseNode(etcd.options(), 1, public_ip="192.168.0.200")
    assert again.acquire().subnets[0] == first.subnets[0]


def test_a_new_address_during_an_outage_is_written_when_etcd_is_back(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "own") as etcd:
        node = LeaseNode(etcd.options(), 1)
        with running(node):
            first = node.keeper.lease
            etcd.kill()
            node.keeper.update(claim("192.168.0.200", vtep(200)))
            time.sleep(1)
            assert node.keeper.lease == first
            etcd.start()
            eventually(lambda: node.keeper.lease != first, "updated long before the next retry")
            assert node.keeper.lease.claim == claim("192.168.0.200", vtep(200))
            assert not node.lost


def test_stop_keeps_the_lease_and_deleting_it_frees_it_with_its_grant(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        lease = node.keeper.lease
    registry = etcd.registry()
    assert in_etcd(registry, lease.subnets[0]) == lease
    registry.delete(lease)
    assert in_etcd(registry, lease.subnets[0]) is None
    assert f"{lease.etcd_lease:x}" not in etcd.ctl("lease", "list")


def test_a_refused_renewal_is_tried_again(tmp_path: Path) -> None:
    """The user loses its right to write and gets it back."""
    with EtcdCluster(tmp_path / "auth") as etcd:
        node = LeaseNode(etcd.enable_auth(PREFIX), 1, ttl=9)
        with running(node):
            first = node.keeper.lease
            etcd.ctl("role", "revoke-permission", "flannel", "--prefix=true", PREFIX)
            time.sleep(4)  # it is due after 3
            assert node.keeper.lease == first
            etcd.ctl("role", "grant-permission", "flannel", "--prefix=true", "readwrite", PREFIX)
            eventually(lambda: node.keeper.lease.etcd_lease != first.etcd_lease, "renewed")
            assert not node.lost


def test_an_old_lease_that_the_config_rules_out_is_deleted(etcd: EtcdCluster) -> None:
    first = LeaseNode(etcd.options(), 1).acquire("10.1.200.0/24")
    pool = replace(CONFIG.pools[0], subnet_max=IPv4Address("10.1.199.0"))
    config = replace(CONFIG, pools=(pool,))
    node = LeaseNode(etcd.options(), 1, config=config)
    second = node.acquire("10.1.200.0/24")
    assert second.subnets[0] < FAR
    assert [lease.subnets[0] for lease in node.registry.snapshot().leases] == [second.subnets[0]]
    assert first.subnets[0] == FAR


def test_only_a_margin_within_the_ttl_can_be_kept(etcd: EtcdCluster) -> None:
    for margin in (0, 60, 61):
        with pytest.raises(ConfigError, match="margin"):
            LeaseKeeper(etcd.registry(), lambda _: None, ttl=60, margin=margin)
    with pytest.raises(LeaseError):
        _ = LeaseKeeper(etcd.registry(), lambda _: None).lease
