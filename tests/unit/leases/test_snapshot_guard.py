"""SnapshotGuard: a deleted lease counts a moment later, a wiped etcd only after the grace period."""

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from flannel_ebpf.leases.snapshot_guard import LINGER, Seen, SnapshotGuard

PEERS = frozenset(IPv4Network((0x0A010000 + 256 * n, 24)) for n in range(1, 6))
FULL = Seen(cluster_id=0xC1, revision=100, subnets=PEERS, own_created=7)
EMPTY = replace(FULL, subnets=frozenset(), revision=101)
GRACE = 60.0


@pytest.fixture
def guard() -> SnapshotGuard:
    guard = SnapshotGuard(GRACE, (), own_created=7, continuous=True)
    assert guard.judge(FULL, 0).may_remove
    return guard


def test_a_deleted_lease_is_removed_when_its_node_has_not_written_it_again(guard: SnapshotGuard) -> None:
    first, second, *_ = sorted(PEERS)
    one_gone = replace(FULL, subnets=PEERS - {first}, revision=101)
    verdict = guard.judge(one_gone, 1)
    assert (verdict.may_remove, verdict.keep, verdict.wait) == (True, {first}, LINGER)
    two_gone = replace(FULL, subnets=PEERS - {first, second}, revision=102)
    verdict = guard.judge(two_gone, 1 + LINGER / 2)
    assert (verdict.keep, verdict.wait) == ({first, second}, LINGER / 2)
    assert guard.judge(two_gone, 1 + LINGER).keep == {second}
    verdict = guard.judge(two_gone, 1 + LINGER * 3 / 2)
    assert (verdict.may_remove, verdict.keep, verdict.wait) == (True, frozenset(), 0)


def test_a_lease_that_is_written_again_at_once_was_never_gone(guard: SnapshotGuard) -> None:
    first = min(PEERS)
    one_gone = replace(FULL, subnets=PEERS - {first}, revision=101)
    assert guard.judge(one_gone, 1).keep == {first}
    assert guard.judge(replace(FULL, revision=102), 1.1).keep == frozenset()
    assert guard.judge(replace(one_gone, revision=103), 1.9).wait == LINGER


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (replace(EMPTY, own_created=0), "our own lease vanished"),
        (replace(EMPTY, own_created=101), "our own lease vanished"),
        (replace(EMPTY, revision=99), "went back from 100 to 99"),
        (replace(EMPTY, cluster_id=0xC2), "changed from c1 to c2"),
    ],
    ids=["own key gone", "own key rewritten", "older revision", "other cluster"],
)
def test_a_discontinuity_holds_removals_for_the_grace_period(
    guard: SnapshotGuard, seen: Seen, why: str
) -> None:
    verdict = guard.judge(seen, 10)
    assert not verdict.may_remove
    assert why in verdict.why
    assert "5 peers" in verdict.why
    assert verdict.wait == GRACE
    assert guard.judge(seen, 10 + GRACE - 1).wait == 1
    assert guard.judge(seen, 10 + GRACE).may_remove
    assert guard.judge(seen, 10 + GRACE + 1).may_remove


def test_a_doubt_outlives_a_snapshot_that_looks_well(guard: SnapshotGuard) -> None:
    assert not guard.judge(replace(EMPTY, own_created=0), 0).may_remove
    returning = replace(FULL, subnets=frozenset([*PEERS][:2]), revision=500, own_created=400)
    assert not guard.judge(returning, 1).may_remove
    assert not guard.judge(replace(returning, revision=501), 2).may_remove


def test_the_doubt_ends_when_all_peers_are_back(guard: SnapshotGuard) -> None:
    assert not guard.judge(replace(EMPTY, revision=3, own_created=2), 0).may_remove
    back = replace(FULL, revision=12, own_created=2)
    assert guard.judge(back, 1).may_remove
    assert guard.judge(replace(back, subnets=frozenset([*PEERS][1:]), revision=13), 2).may_remove


def test_a_second_doubt_gets_its_own_grace_period(guard: SnapshotGuard) -> None:
    assert not guard.judge(replace(EMPTY, own_created=0), 0).may_remove
    assert guard.judge(FULL, 1).may_remove
    assert guard.judge(replace(EMPTY, own_created=0), 100).wait == GRACE


def test_a_restarted_daemon_believes_the_etcd_that_held_its_lease() -> None:
    one_left = replace(FULL, subnets=frozenset([*PEERS][:1]))
    assert SnapshotGuard(GRACE, PEERS, 7, continuous=True).judge(one_left, 0).may_remove
    verdict = SnapshotGuard(GRACE, PEERS, 7, continuous=False).judge(one_left, 0)
    assert not verdict.may_remove
    assert "4 peers" in verdict.why
    assert SnapshotGuard(GRACE, (), 7, continuous=False).judge(one_left, 0).may_remove


def test_no_grace_believes_everything() -> None:
    guard = SnapshotGuard(0, PEERS, 7, continuous=False)
    verdict = guard.judge(replace(EMPTY, own_created=0), 0)
    assert (verdict.may_remove, verdict.keep) == (True, frozenset())
