"""The leases that count, through good snapshots, outages and sudden losses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from flannel_ebpf.base.errors import EtcdUnavailable
from flannel_ebpf.base.model import Lease, Skipped
from flannel_ebpf.leases.cluster import Cluster
from flannel_ebpf.leases.snapshot import Snapshot
from flannel_ebpf.leases.snapshot_guard import SnapshotGuard
from tests.samples import lease as sample


def lease(number: int) -> Lease:
    return sample(
        f"10.1.{number}.0/24",
        f"192.168.64.{number}",
        "vxlan",
        mod_revision=number,
        create_revision=number,
        key=f"/net/subnets/10.1.{number}.0-24",
    )


def snapshot(numbers: Sequence[int], revision: int = 10, cluster_id: int = 1) -> Snapshot:
    return Snapshot(
        revision, cluster_id, tuple(map(lease, numbers)), (Skipped("/net/subnets/x", "no subnet"),)
    )


def cluster(
    *answers: Snapshot | Exception, programmed: Sequence[int] = (), reused: bool = True
) -> tuple[Cluster, list[bool]]:
    """Return one whose source answers so, and a list of how it was asked: all anew or not."""
    left, asked = list(answers), list[bool]()

    def read(*, whole: bool) -> Snapshot:
        asked.append(whole)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    subnets = [lease(number).subnets[0] for number in programmed]
    guard = SnapshotGuard(300.0, subnets, lease(1).create_revision, continuous=reused)
    return Cluster(read, lambda: lease(1), guard, lambda: None), asked


def subnets(of: Cluster) -> set[str]:
    return {str(one.subnets[0]) for one in of.view.leases}


def test_nothing_may_be_removed_before_the_first_snapshot() -> None:
    fresh, _ = cluster()
    assert fresh.view.leases == ()
    assert not fresh.view.may_remove


def test_a_snapshot_is_what_counts() -> None:
    one, _ = cluster(snapshot([1, 2, 3]))
    one.refresh()
    assert subnets(one) == {"10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24"}
    assert one.view.may_remove
    assert [skipped.key for skipped in one.view.skipped] == ["/net/subnets/x"]


def test_an_outage_changes_nothing() -> None:
    one, _ = cluster(snapshot([1, 2]), EtcdUnavailable("gone"))
    one.refresh()
    before = one.view
    with pytest.raises(EtcdUnavailable):
        one.refresh()
    assert one.view == before


def test_a_wiped_etcd_takes_nobody_away() -> None:
    one, _ = cluster(snapshot([1, 2, 3]), snapshot([], revision=3, cluster_id=2))
    one.refresh()
    one.refresh()
    assert subnets(one) == {"10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24"}
    assert not one.view.may_remove
    assert "cluster id changed" in one.view.doubt


def test_what_a_former_process_programmed_is_missed_too() -> None:
    """The lease had to be made anew: etcd may have been wiped while no daemon ran."""
    one, _ = cluster(snapshot([1]), programmed=[2, 3], reused=False)
    one.refresh()
    assert not one.view.may_remove
    assert "no lease of ours" in one.view.doubt


def test_after_a_gap_everything_is_read_once() -> None:
    one, asked = cluster(*[snapshot([1, 2])] * 3)
    one.refresh()
    one.wake_after_gap()
    one.refresh()
    one.refresh()
    assert asked == [False, True, False]
