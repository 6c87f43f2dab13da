"""The leases that count, through good snapshots, outages and sudden losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any, cast

import pytest

from flannel_ebpf.cluster import Cluster
from flannel_ebpf.errors import EtcdUnavailable
from flannel_ebpf.etcd.registry import Snapshot
from flannel_ebpf.model import Lease, Skipped


def lease(number: int) -> Lease:
    subnet = IPv4Network(f"10.1.{number}.0/24")
    return Lease(
        subnet,
        IPv4Address(f"192.168.64.{number}"),
        "vxlan",
        mod_revision=number,
        create_revision=number,
        key=f"/net/subnets/10.1.{number}.0-24",
    )


@dataclass
class Registry:
    """Answers with what it is told to."""

    answers: list[Snapshot | Exception] = field(default_factory=list)

    def snapshot(self) -> Snapshot:
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
    subnets = [lease(number).subnet for number in programmed]
    return Cluster(
        cast(Any, Registry(list(answers))), cast(Any, keeper), 300.0, subnets, lambda: None
    ), keeper


def subnets(of: Cluster) -> set[str]:
    return {str(one.subnet) for one in of.view.leases}


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
