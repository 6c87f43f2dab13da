"""What of etcd is read anew, and when all of it."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from flannel_ebpf.base.errors import EtcdUnavailable
from flannel_ebpf.leases.etcd.reader import SnapshotReader
from flannel_ebpf.leases.snapshot import Snapshot


@dataclass
class Registry:
    """Answers with snapshots of these revisions; `asked` says how."""

    answers: list[int | Exception]
    asked: list[str] = field(default_factory=list)
    known: Set[str] = frozenset()
    follows: bool = True

    def snapshot(self) -> Snapshot:
        self.asked.append("whole")
        return self._answer()

    def changed_since(self, before: Snapshot, gone: Mapping[str, int]) -> Snapshot | None:
        self.asked.append(f"since {before.revision}" + "".join(f" without {key}" for key in gone))
        return self._answer() if self.known <= gone.keys() else None

    def followed(
        self, before: Snapshot, written: Mapping[str, int], gone: Mapping[str, int]
    ) -> Snapshot | None:
        self.asked.append(
            f"from {before.revision} " + " ".join([*written, *(f"without {key}" for key in gone)])
        )
        return self._answer() if self.follows else None

    def _answer(self) -> Snapshot:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Snapshot(answer, 1, (), ())


def test_only_what_changed_is_read_until_something_may_have_been_missed() -> None:
    registry, shown = Registry([10, 11, EtcdUnavailable("gone"), 12, 12, 12]), list[int]()
    reader = SnapshotReader(cast(Any, registry), lambda it: shown.append(it.revision))
    for _ in range(2):
        reader.read(whole=False)
    with pytest.raises(EtcdUnavailable):
        reader.read(whole=False)
    for _ in range(2):
        reader.read(whole=False)
    reader.read(whole=True)
    assert registry.asked == ["whole", "since 10", "since 11", "whole", "since 12", "whole"]
    assert shown == [10, 11, 12, 12, 12]


def test_what_was_read_a_moment_ago_is_where_it_begins() -> None:
    registry = Registry([11])
    SnapshotReader(cast(Any, registry), lambda _: None, Snapshot(10, 1, (), ())).read(whole=False)
    assert registry.asked == ["since 10"]


def test_everything_is_read_again_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [1000.0]
    monkeypatch.setattr("flannel_ebpf.leases.etcd.reader.time.monotonic", lambda: clock[0])
    registry = Registry([10] * 4)
    reader = SnapshotReader(cast(Any, registry), lambda _: None)
    for seconds in (0, 30, 30, 30):
        clock[0] += seconds
        reader.read(whole=False)
    assert registry.asked == ["whole", "since 10", "whole", "since 10"]


def test_a_deletion_that_was_heard_of_costs_no_look_at_all_others() -> None:
    registry = Registry([10, 12, 14], known={"a"}, follows=False)
    reader = SnapshotReader(cast(Any, registry), lambda _: None)
    reader.read(whole=False)
    reader.hear({}, {"a": 11})
    reader.hear({}, {"b": 13})
    reader.read(whole=False)
    reader.hear({}, {"a": 14})
    reader.read(whole=False)
    assert registry.asked == [
        "whole",
        "from 10 without a without b",
        "since 10 without a without b",
        "from 12 without b without a",
        "since 12 without b without a",
    ]


def test_what_was_heard_of_is_read_by_name_and_once() -> None:
    registry = Registry([10, 13, 13, 15])
    reader = SnapshotReader(cast(Any, registry), lambda _: None)
    reader.read(whole=False)
    reader.hear({"a": 11, "b": 12}, {})
    reader.hear({"a": 13}, {"c": 13})
    reader.read(whole=False)
    reader.read(whole=False)
    reader.hear({"d": 15}, {})
    reader.read(whole=False)
    assert registry.asked == ["whole", "from 10 a b without c", "since 13", "from 13 d"]


def test_a_deletion_may_be_heard_of_after_it_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = Registry([10, 12], known={"a"})
    reader = SnapshotReader(cast(Any, registry), lambda _: None)
    reader.read(whole=False)
    monkeypatch.setattr(
        "flannel_ebpf.leases.etcd.reader.time.sleep", lambda s: s and reader.hear({}, {"a": 11})
    )
    reader.read(whole=False)
    assert registry.asked == ["whole", "since 10", "since 10 without a"]


def test_a_deletion_that_nobody_tells_of_is_found_by_reading_all() -> None:
    registry = Registry([10, 12], known={"a"})
    reader = SnapshotReader(cast(Any, registry), lambda _: None)
    reader.read(whole=False)
    reader.read(whole=False)
    assert registry.asked == ["whole", "since 10", "since 10", "whole"]
