"""The leases that count, through good snapshots, outages and sudden losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest

from flannel_ebpf.base.errors import EtcdUnavailable, SourceClosed
from flannel_ebpf.base.model import Lease, Skipped
from flannel_ebpf.leases.cluster import PERIOD, Cluster
from flannel_ebpf.leases.snapshot import Snapshot
from flannel_ebpf.leases.snapshot_guard import LINGER, SnapshotGuard
from tests.polls import eventually
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


class Waits:
    """In the place of the event that the thread waits for: notes the seconds, and ends it in the end."""

    def __init__(self, one: Cluster, rounds: int) -> None:
        self._one, self._left = one, rounds
        self.seconds: list[float] = []

    def wait(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self._left -= 1
        self._one._stopping = self._left < 0

    def set(self) -> None: ...

    def clear(self) -> None: ...


def rounds(
    *answers: Snapshot | Exception, grace: float = 300.0
) -> tuple[Cluster, list[float], list[int], list[Snapshot | Exception]]:
    """Have the thread's function read these answers.

    Return what it waited for, how many leases each view had that it told of, and the answers that it left.
    """
    left, told = list(answers), list[int]()

    def read(*, whole: bool) -> Snapshot:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    guard = SnapshotGuard(grace, (), lease(1).create_revision, continuous=True)
    one = Cluster(read, lambda: lease(1), guard, lambda: told.append(len(one.view.leases)))
    waits = Waits(one, len(answers))
    one._wake = cast(Any, waits)
    one._run()
    return one, waits.seconds[1:], told, left


def test_only_news_are_told() -> None:
    answers = [snapshot([1, 2]), snapshot([1, 2], 11), snapshot([1, 2, 3], 12), snapshot([1, 2, 3], 13)]
    assert rounds(*answers)[2] == [2, 3]


def test_a_failed_read_is_tried_again_ever_more_rarely_and_then_as_if_nothing_had_been(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = EtcdUnavailable("nobody answers")
    _, waited, told, _ = rounds(*[gone] * 7, snapshot([1]), gone, snapshot([1, 2]))
    assert waited == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, PERIOD, 0.2, PERIOD]
    assert told == [1, 2]
    assert "nobody answers" in caplog.text


def test_a_closed_client_ends_it() -> None:
    _, waited, told, left = rounds(SourceClosed("closed"), snapshot([1]))
    assert (waited, told, len(left)) == ([], [], 1)


def test_whoever_is_missed_is_looked_for_again_when_grace_is_over() -> None:
    wiped = snapshot([1], revision=3, cluster_id=2)
    for grace, wanted in ((30.0, 30.0), (300.0, PERIOD)):
        _, waited, *_ = rounds(snapshot([1, 2, 3]), wiped, grace=grace)
        assert waited == [PERIOD, pytest.approx(wanted, abs=1)]


def test_a_node_that_has_another_subnet_now_is_not_held_at_its_old_one() -> None:
    moved = replace(lease(9), parts=(replace(lease(9).parts[0], public_ip=lease(3).public_ip),))
    wiped = replace(snapshot([1], revision=3, cluster_id=2), leases=(lease(1), moved))
    one, *_ = rounds(snapshot([1, 2, 3]), wiped)
    assert subnets(one) == {"10.1.1.0/24", "10.1.2.0/24", "10.1.9.0/24"}
    assert one.view.doubt


def test_a_peer_that_left_is_held_for_a_moment_and_then_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("flannel_ebpf.leases.cluster.time.monotonic", lambda: clock[0])
    one, _ = cluster(snapshot([1, 2, 3], 10), *[snapshot([1, 3], 11)] * 2)
    one.refresh()
    one.refresh()
    assert subnets(one) == {"10.1.1.0/24", "10.1.2.0/24", "10.1.3.0/24"}
    assert one.view.may_remove, "others may go meanwhile"
    clock[0] += LINGER + 0.1
    one.refresh()
    assert subnets(one) == {"10.1.1.0/24", "10.1.3.0/24"}


def test_each_key_that_is_no_lease_and_each_doubt_is_said_when_it_begins(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("WARNING")
    poison = replace(snapshot([1, 2], 12), skipped=(Skipped("/net/subnets/y", "no subnet"),))
    wiped = snapshot([1], revision=3, cluster_id=2)
    rounds(snapshot([1, 2]), snapshot([1, 2], 11), poison, poison, wiped, wiped)
    said = [record.getMessage() for record in caplog.records]
    for wanted in ("/net/subnets/x", "/net/subnets/y", "cluster id changed"):
        first = next(at for at, line in enumerate(said) if wanted in line)
        assert first >= 0
    assert sum("/net/subnets/y" in line for line in said) == 1
    assert sum("cluster id changed" in line for line in said) == 1


def test_doubt_that_is_over_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("WARNING")
    back = snapshot([1, 2, 3], revision=9, cluster_id=2)
    one, *_ = rounds(snapshot([1, 2, 3]), snapshot([1], revision=3, cluster_id=2), back)
    assert one.view.may_remove
    assert "believed again" in caplog.text


def test_stop_ends_the_thread_and_leaves_the_view() -> None:
    one, _ = cluster(snapshot([1, 2]))
    one.start()
    one.wake()
    eventually(lambda: one.view.leases, "the first snapshot")
    one.stop()
    assert not one._thread.is_alive()
    assert subnets(one) == {"10.1.1.0/24", "10.1.2.0/24"}
