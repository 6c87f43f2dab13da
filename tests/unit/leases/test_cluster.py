"""The leases that count, through good snapshots, outages and sudden losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from flannel_ebpf.base.errors import EtcdUnavailable
from flannel_ebpf.base.model import Lease, Skipped
from flannel_ebpf.leases.cluster import Cluster
from flannel_ebpf.leases.etcd.registry import Snapshot
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


@dataclass
class Registry:
    """Answers with what it is told to; `asked` says how."""

    answers: list[Snapshot | Exception] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
        self.asked.append("whole")
        return self._answer()

    def snapshot_since(self, before: Snapshot) -> Snapshot:
        self.asked.append(f"since {before.revision}")
        return self._answer()

    def _answer(self) -> Snapshot:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class Keeper:
    lease: Lease
    reused: bool = True
    seen: list[Snapshot] = field(default_factory=list)

    def observe(self, snapshot: Snapshot) -> None:
        self.seen.append(snapshot)


def snapshot(numbers: Sequence[int], revision: int = 10, cluster_id: int = 1) -> Snapshot:
    return Snapshot(
        revision, cluster_id, tuple(map(lease, numbers)), (Skipped("/net/subnets/x", "no subnet"),)
    )


def cluster(
    *answers: Snapshot | Exception, programmed: Sequence[int] = (), reused: bool = True
) -> tuple[Cluster, Keeper]:
    keeper = Keeper(lease(1), reused)
    subnets = [lease(number).subnets[0] for number in programmed]
    return Cluster(
        cast(Any, Registry(list(answers))), cast(Any, keeper), 300.0, subnets, lambda: None
    ), keeper


def subnets(of: Cluster) -> set[str]:
    return {str(one.subnets[0]) for one in of.view.leases}


def test_nothing_may_be_removed_before_the_first_snapshot() -> None:
    fresh, _ = cluster()
    assert fresh.view.leases == ()
    assert not fresh.view.may_remove


def test_a_snapshot_is_what_counts_and_the_keeper_sees_it() -> None:
    one, keeper = cluster(snapshot([1, 2, 3]))
    one.refresh()
    assert subnets(one) == {"10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24"}
    assert one.view.may_remove
    assert [skipped.key for skipped in one.view.skipped] == ["/net/subnets/x"]
    assert len(keeper.seen) == 1


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


def test_only_what_changed_is_read_until_something_may_have_been_missed() -> None:
    answers = [snapshot([1], 10), snapshot([1, 2], 11), EtcdUnavailable("gone"), *[snapshot([1, 2], 12)] * 3]
    one, _ = cluster(*answers)
    registry = cast(Registry, one._registry)
    for _ in range(2):
        one.refresh()
    with pytest.raises(EtcdUnavailable):
        one.refresh()
    for _ in range(2):
        one.refresh()
    one.wake_after_gap()
    one.refresh()
    assert registry.asked == ["whole", "since 10", "since 11", "whole", "since 12", "whole"]


def test_everything_is_read_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("flannel_ebpf.leases.cluster.time.monotonic", lambda: clock[0])
    one, _ = cluster(*[snapshot([1, 2])] * 4)
    for seconds in (0, 30, 30, 30):
        clock[0] += seconds
        one.refresh()
    assert cast(Registry, one._registry).asked == ["whole", "since 10", "whole", "since 10"]
