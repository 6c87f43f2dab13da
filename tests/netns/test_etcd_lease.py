"""LeaseKeeper and Registry against real etcd: one node's lease through everything that can happen to it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from etcd_cluster import EtcdCluster, eventually
from lease_node import CONFIG, PREFIX, LeaseNode, running, vtep

from flannel_ebpf import lease_keeper
from flannel_ebpf.errors import ConfigError, LeaseConflict, LeaseError
from flannel_ebpf.etcd import EtcdClient, Registry
from flannel_ebpf.lease_keeper import DAY, LeaseKeeper
from flannel_ebpf.model import Lease

SUBNETS = f"{PREFIX}/subnets"
FAR = IPv4Network("10.1.200.0/24")
KEY = f"{SUBNETS}/10.1.200.0-24"
STRANGER = '{"PublicIP":"192.168.9.9","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:09:09"}}'  # noqa: E501 - one value


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def etcd(shared: EtcdCluster) -> EtcdCluster:
    shared.ctl("del", "--prefix", "/")
    return shared


def value(etcd: EtcdCluster, key: str = KEY) -> str:
    return etcd.ctl("get", "--print-value-only", key).strip()


def ttl(etcd: EtcdCluster, lease: Lease) -> int:
    return int(json.loads(etcd.ctl("lease", "timetolive", f"{lease.etcd_lease:x}", "-w=json"))["ttl"])


def in_etcd(registry: Registry, subnet: IPv4Network = FAR) -> Lease | None:
    return next((lease for lease in registry.snapshot().leases if lease.subnet == subnet), None)


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
    assert (lease.subnet, lease.create_revision) == (first.subnet, first.create_revision)
    assert lease.etcd_lease != first.etcd_lease
    assert in_etcd(again.registry, lease.subnet) == lease
    assert lease.backend_data == vtep(99)


def test_renewal_is_a_new_grant_and_outlives_the_ttl_many_times(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1, ttl=3, margin=2)
    with running(node):
        first, text = node.keeper.lease, value(etcd, node.keeper.lease.key)
        time.sleep(4)
        now = in_etcd(node.registry, first.subnet)
        assert now is not None
        assert now.create_revision == first.create_revision
        assert now.etcd_lease not in (0, first.etcd_lease)
        assert value(etcd, first.key) == text
    eventually(lambda: in_etcd(LeaseNode(etcd.options(), 2).registry, first.subnet) is None, 6, "expires")


def test_a_renewal_due_while_etcd_is_away_is_made_up(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "own") as etcd:
        node = LeaseNode(etcd.options(), 1, ttl=6, margin=4)
        with running(node):
            first = node.keeper.lease
            etcd.kill()
            time.sleep(5)
            assert node.keeper.lease == first
            etcd.start()
            eventually(lambda: node.keeper.lease.etcd_lease != first.etcd_lease, 8, "renewed")
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
        eventually(lambda: node.keeper.lease.etcd_lease != first.etcd_lease, 2, "renewed")


@pytest.mark.parametrize("how", ["deleted", "expired"])
def test_an_own_key_that_vanished_is_written_again_at_once(etcd: EtcdCluster, how: str) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        first = node.keeper.lease
        eventually(lambda: node.passes, 2, "first pass")
        if how == "deleted":
            etcd.ctl("del", first.key)
        else:
            etcd.ctl("lease", "revoke", f"{first.etcd_lease:x}")
        eventually(lambda: node.keeper.lease != first, 1, "written again")
        lease = node.keeper.lease
        assert in_etcd(node.registry, first.subnet) == lease
        assert (lease.key, lease.backend_data) == (first.key, first.backend_data)
        assert ttl(etcd, lease) > DAY - 10
        assert not node.lost


def test_a_stolen_key_is_given_up_and_not_written_over(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        node_key = node.keeper.lease.key
        eventually(lambda: node.passes, 2, "first pass")
        etcd.ctl("put", node_key, STRANGER)
        eventually(lambda: node.lost, 1, "lost")
        time.sleep(0.3)
        assert value(etcd, node_key) == STRANGER
        assert "192.168.9.9" in str(node.lost[0])
        assert str(node.keeper.lease.subnet) in str(node.lost[0])
    assert len(node.lost) == 1


def test_a_renewal_never_overwrites_a_new_owner(etcd: EtcdCluster) -> None:
    """No watch runs: the renewal itself must find out (flannel issue 1289)."""
    node = LeaseNode(etcd.options(), 1, ttl=4, margin=3)
    lease = node.acquire()
    etcd.ctl("put", lease.key, STRANGER)
    node.keeper.start()
    eventually(lambda: node.lost, 4, "lost")
    assert value(etcd, lease.key) == STRANGER
    node.keeper.stop()


def test_a_subnet_taken_while_we_were_cut_off_is_lost(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "three", size=3) as etcd:
        options = etcd.options()
        node = LeaseNode(replace(options, endpoints=etcd.endpoints[:1]), 1)
        other = LeaseNode(replace(options, endpoints=etcd.endpoints[1:]), 2)
        with running(node):
            subnet = node.keeper.lease.subnet
            etcd.members[0].kill()
            eventually(lambda: etcd.ctl("get", "x", endpoints=etcd.endpoints[1:]) == "", 8, "a leader")
            etcd.ctl("del", node.keeper.lease.key, endpoints=etcd.endpoints[1:])
            assert other.acquire(str(subnet)).subnet == subnet
            assert not node.lost
            etcd.start()
            eventually(lambda: node.lost, 8, "lost")


def test_of_two_nodes_with_one_public_ip_the_newcomer_gives_way_and_says_so(etcd: EtcdCluster) -> None:
    first = LeaseNode(etcd.options(), 1)
    second = LeaseNode(etcd.options(), 2, public_ip="192.168.0.1")
    with running(first, second):
        eventually(lambda: second.lost, 10, "the second gives up")
        eventually(
            lambda: in_etcd(first.registry, first.keeper.lease.subnet) == first.keeper.lease, 2, "the first's"
        )
        assert not first.lost
        assert "needs a --public-ip of its own" in str(second.lost[0])


def test_one_edit_of_our_lease_is_simply_undone_and_unknown_fields_stay(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        key, original = node.keeper.lease.key, value(etcd, node.keeper.lease.key)
        eventually(lambda: node.passes, 2, "first pass")
        grant = f"--lease={node.keeper.lease.etcd_lease:x}"
        etcd.ctl("put", grant, key, '{"publicip":"192.168.0.1","BackendType":"udp","Rack":{"n":[1,2]}}')
        wanted = original[:-1] + ',"Rack":{"n":[1,2]}}'
        eventually(lambda: value(etcd, key) == wanted, 2, "written again")
        node.keeper.update(IPv4Address("192.168.0.1"), vtep(7))
        eventually(lambda: '"VtepMAC":"02:00:00:00:00:07"' in value(etcd, key), 2, "updated")
        assert value(etcd, key).endswith(',"Rack":{"n":[1,2]}}')
        assert not node.lost


def test_a_new_address_and_vtep_are_written_in_place(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    with running(node):
        first = node.keeper.lease
        node.keeper.update(IPv4Address("192.168.0.200"), vtep(200))
        eventually(lambda: node.keeper.lease != first, 2, "updated")
        lease = node.keeper.lease
        assert in_etcd(node.registry, first.subnet) == lease
        assert (lease.public_ip, lease.backend_data) == (IPv4Address("192.168.0.200"), vtep(200))
        assert lease.create_revision == first.create_revision
        time.sleep(0.3)
        assert node.keeper.lease == lease
    again = LeaseNode(etcd.options(), 1, public_ip="192.168.0.200")
    assert again.acquire().subnet == first.subnet


def test_a_new_address_during_an_outage_is_written_when_etcd_is_back(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "own") as etcd:
        node = LeaseNode(etcd.options(), 1, retry=60)
        with running(node):
            first = node.keeper.lease
            etcd.kill()
            node.keeper.update(IPv4Address("192.168.0.200"), vtep(200))
            time.sleep(1)
            assert node.keeper.lease == first
            etcd.start()
            eventually(lambda: node.keeper.lease != first, 8, "updated long before the next retry")
            assert node.keeper.lease.public_ip == IPv4Address("192.168.0.200")
            assert not node.lost


def test_stop_keeps_the_lease_and_release_frees_it(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    lease = node.acquire()
    node.keeper.start()
    node.keeper.stop()
    assert in_etcd(node.registry, lease.subnet) == lease
    node.keeper.release()
    assert in_etcd(node.registry, lease.subnet) is None
    assert f"{lease.etcd_lease:x}" not in etcd.ctl("lease", "list")


def test_release_leaves_a_key_that_another_node_has_taken(etcd: EtcdCluster) -> None:
    node = LeaseNode(etcd.options(), 1)
    lease = node.acquire()
    etcd.ctl("put", lease.key, STRANGER)
    with pytest.raises(LeaseConflict):
        node.keeper.release()
    assert value(etcd, lease.key) == STRANGER


def test_no_grant_stays_behind_when_a_write_loses(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    before = etcd.ctl("lease", "list").split()
    registry.create(Lease(FAR, IPv4Address("1.1.1.1")), ttl=0)
    with pytest.raises(LeaseConflict):
        registry.create(Lease(FAR, IPv4Address("2.2.2.2")), ttl=600)
    assert etcd.ctl("lease", "list").split() == before


def test_a_write_that_lost_the_race_changes_nothing(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    ours = registry.create(Lease(FAR, IPv4Address("1.1.1.1")), ttl=600)
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
    lease = registry.create(Lease(FAR, IPv4Address("1.1.1.1"), "host-gw"), ttl=600)
    assert in_etcd(registry) == lease
    lease = registry.rewrite(replace(lease, public_ip=IPv4Address("1.1.1.2")), ttl=600)
    assert in_etcd(registry) == lease
    assert registry.reserve(FAR, IPv4Address("1.1.1.2")) == in_etcd(registry)
    registry.delete(registry.snapshot().leases[0])
    assert in_etcd(registry) is None


def test_a_refused_renewal_is_tried_again(tmp_path: Path) -> None:
    """The user loses its right to write and gets it back."""
    with EtcdCluster(tmp_path / "auth") as etcd:
        node = LeaseNode(etcd.enable_auth(PREFIX), 1, ttl=20, margin=18)
        with running(node):
            first = node.keeper.lease
            etcd.ctl("role", "revoke-permission", "flannel", "--prefix=true", PREFIX)
            time.sleep(3)
            assert node.keeper.lease == first
            etcd.ctl("role", "grant-permission", "flannel", "--prefix=true", "readwrite", PREFIX)
            eventually(lambda: node.keeper.lease.etcd_lease != first.etcd_lease, 3, "renewed")
            assert not node.lost


def test_a_reservation_is_taken_and_never_gets_a_ttl(etcd: EtcdCluster) -> None:
    registry = etcd.registry()
    registry.reserve(FAR, IPv4Address("192.168.0.1"))
    assert value(etcd) == '{"PublicIP":"192.168.0.1","PublicIPv6":null}'
    node = LeaseNode(etcd.options(), 1, ttl=3, margin=2)
    with running(node):
        assert node.keeper.lease.subnet == FAR
        node.keeper.update(IPv4Address("192.168.0.1"), vtep(5))
        eventually(lambda: "00:05" in value(etcd), 2, "updated")
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
        eventually(lambda: node.keeper.lease.etcd_lease == 0, 2, "permanent")
        assert registry.unreserve(first.subnet, ttl=600)
        eventually(lambda: node.keeper.lease.etcd_lease != 0, 2, "an ordinary lease")
        assert ttl(etcd, node.keeper.lease) > DAY - 10
        assert node.keeper.lease.create_revision == first.create_revision
        assert not registry.unreserve(first.subnet, ttl=600)
    registry.reserve(FAR, IPv4Address("192.168.0.2"))
    assert registry.unreserve(FAR, ttl=600)
    assert in_etcd(registry) is None
    assert not registry.unreserve(FAR, ttl=600)


def test_an_old_lease_that_the_config_rules_out_is_deleted(etcd: EtcdCluster) -> None:
    first = LeaseNode(etcd.options(), 1).acquire("10.1.200.0/24")
    config = replace(CONFIG, subnet_max=IPv4Address("10.1.199.0"))
    node = LeaseNode(etcd.options(), 1, config=config)
    second = node.acquire("10.1.200.0/24")
    assert second.subnet < FAR
    assert [lease.subnet for lease in node.registry.snapshot().leases] == [second.subnet]
    assert first.subnet == FAR


def test_only_a_margin_within_the_ttl_can_be_kept(etcd: EtcdCluster) -> None:
    for margin in (0, 60, 61):
        with pytest.raises(ConfigError, match="margin"):
            LeaseKeeper(etcd.registry(), lambda _: None, ttl=60, margin=margin)
    with pytest.raises(LeaseError):
        _ = LeaseKeeper(etcd.registry(), lambda _: None).lease
