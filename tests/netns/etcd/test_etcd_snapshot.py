"""What was written since a snapshot, read from a real etcd, leads to just what a whole read shows."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.errors import EtcdTooMuch
from flannel_ebpf.leases.etcd import EtcdClient, Registry, messages
from flannel_ebpf.leases.etcd.reader import SnapshotReader
from flannel_ebpf.leases.etcd.registry import PAGE
from flannel_ebpf.leases.etcd.watch import Watch
from flannel_ebpf.leases.snapshot import Snapshot
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually

PREFIX = "/coreos.com/network"
KEYS = [f"{PREFIX}/subnets/10.1.{n}.0-24" for n in range(5, 9)]
ODD = [f"{KEYS[0]}&fc00::-64", f"{PREFIX}/subnets/hello"]
VALUES = ['{"PublicIP":"192.168.0.7"}', '{"PublicIP":"192.168.0.8","BackendType":"vxlan"}', "{"]


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "one") as cluster:
        yield cluster


def essence(snapshot: Snapshot) -> tuple[Any, ...]:
    leases = {lease.key: lease for lease in snapshot.leases}
    return snapshot.revision, snapshot.cluster_id, leases, {skipped.key for skipped in snapshot.skipped}


def counted(registry: Registry) -> list[str]:
    """Return a list to which every whole read is added."""
    wholes: list[str] = []
    whole = registry.snapshot

    def snapshot() -> Snapshot:
        wholes.append("whole")
        return whole()

    registry.snapshot = snapshot  # type: ignore[method-assign]
    return wholes


def test_any_writes_and_deletions_are_seen(one: EtcdCluster) -> None:
    registry, choice = one.registry(), random.Random(7)
    wholes = counted(registry)
    before = registry.snapshot()
    for _ in range(60):
        for key in choice.choices(KEYS * 4 + ODD, k=choice.randint(0, 2)):
            if choice.random() < 0.3:
                one.ctl("del", key)
            else:
                one.ctl("put", key, choice.choice(VALUES[:2] * 4 + VALUES[2:]))
        after = registry.snapshot_since(before)
        assert essence(after) == essence(registry.snapshot())
        before = after
    assert 60 < len(wholes) < 115, "some changes took a whole read, and some did not"


def test_what_a_watch_tells_leads_to_the_same(one: EtcdCluster) -> None:
    registry, choice = one.registry(), random.Random(8)
    wholes = counted(registry)
    reader = SnapshotReader(registry, lambda _: None)
    client, standing = EtcdClient(one.options()), threading.Event()
    watch = Watch(client, registry.watched, lambda: None, standing.set, reader.hear)
    watch.start()
    assert standing.wait(60)
    reader.read(whole=True)
    for _ in range(40):
        for key in choice.choices(KEYS, k=choice.randint(1, 3)):
            if choice.random() < 0.3:
                one.ctl("del", key)
            else:
                one.ctl("put", key, choice.choice(VALUES[:2]))
            reader.read(whole=False)  # in the midst of it
        there = one.registry().snapshot()
        eventually(lambda: reader.read(whole=False).revision >= there.revision, "all is told")  # noqa: B023
        assert essence(reader.read(whole=False)) == essence(there)
    assert len(wholes) < 20, "hardly any change took a whole read"
    watch.stop()
    client.close()


def test_what_was_read_once_is_not_read_again(one: EtcdCluster) -> None:
    registry = one.registry()
    wholes = counted(registry)
    registry.latest()
    one.ctl("put", KEYS[0], VALUES[1])
    latest = registry.latest()
    assert wholes == ["whole"]
    assert essence(latest) == essence(registry.snapshot())


def test_a_restored_etcd_takes_a_whole_read(one: EtcdCluster, tmp_path: Path) -> None:
    registry = one.registry()
    one.ctl("put", KEYS[0], VALUES[0])
    one.save(tmp_path / "saved")
    one.ctl("put", KEYS[0], VALUES[1])
    before = registry.snapshot()
    one.restore(tmp_path / "saved")
    after = registry.snapshot_since(before)
    assert [lease.claim.backend_type for lease in after.leases] == [""]
    assert essence(after) == essence(registry.snapshot())


def test_more_octets_than_a_message_holds_hide_no_lease(one: EtcdCluster) -> None:
    """70 MiB of what is no lease, before, between and behind what is one."""
    registry, client = one.registry(), EtcdClient(one.options())
    junk = [f"{PREFIX}/subnets/{place}-{n}" for place in ("1", "10.1.6.0-24/x", "z") for n in range(24)]
    junk.append(f"{PREFIX}/subnets/10.1.99.0-24")
    for key in KEYS[:2]:
        one.ctl("put", key, VALUES[0])
    for key in junk:
        client.ask("KV/Put", messages.PutRequest(key=key.encode(), value=bytes(1 << 20)))
    with pytest.raises(EtcdTooMuch):
        client.ask("KV/Range", messages.RangeRequest(key=b"/", range_end=b"0"))
    first = registry.snapshot()
    assert [lease.key for lease in first.leases] == KEYS[:2]
    assert sorted(skipped.key for skipped in first.skipped) == sorted(junk)
    [large] = [skipped.why for skipped in first.skipped if skipped.key == junk[-1]]
    assert large.endswith("the value has more than 65536 octets")
    one.ctl("put", KEYS[2], VALUES[1])
    second = registry.snapshot_since(first)
    assert essence(second) == essence(registry.snapshot())
    assert [lease.key for lease in second.leases] == KEYS[:3]
    one.ctl("del", "--prefix", f"{PREFIX}/subnets/z")
    one.ctl("del", "--prefix", f"{PREFIX}/subnets/1-")
    third = registry.snapshot_since(second)
    assert len(third.skipped) == 25
    assert registry._page == PAGE, "a small answer is asked for in one piece again"
    client.close()


def test_pages_are_of_one_revision(one: EtcdCluster) -> None:
    """A key moves while the pages are read: it is in just one of them."""
    registry, client = one.registry(), EtcdClient(one.options())
    registry._page = 1
    for key in KEYS[:3]:
        one.ctl("put", key, VALUES[0])
    asked = registry._client.ask

    def ask(name: str, request: Any) -> Any:
        answer = asked(name, request)
        if request.key == registry.watched.encode():  # after the first page
            client.ask("KV/DeleteRange", messages.message("DeleteRangeRequest")(key=KEYS[2].encode()))
            client.ask("KV/Put", messages.PutRequest(key=KEYS[3].encode(), value=VALUES[0].encode()))
        return answer

    registry._client.ask = ask  # type: ignore[method-assign]
    snapshot = registry.snapshot()
    assert [lease.key for lease in snapshot.leases] == KEYS[:3]
    registry._client.ask = asked  # type: ignore[method-assign]
    after = registry.snapshot_since(snapshot)
    assert [lease.key for lease in after.leases] == [*KEYS[:2], KEYS[3]]
    client.close()


def test_a_deletion_that_is_known_takes_no_read_of_all(one: EtcdCluster) -> None:
    registry = one.registry()
    for key in KEYS:
        one.ctl("put", key, VALUES[0])
    before = registry.snapshot()
    for key in KEYS[:2]:
        one.ctl("del", key)
    one.ctl("put", KEYS[1], VALUES[1])
    known = {KEYS[0]: before.revision + 1, KEYS[1]: before.revision + 2}
    changed = registry.changed_since(before, known)
    assert changed is not None
    assert essence(changed) == essence(registry.snapshot())
    assert registry.changed_since(before, {}) is None, "a key is missing, and nobody knows which"
    assert registry.changed_since(before, {KEYS[0]: before.revision}) is None, "that was before"


def test_keys_that_a_watch_tells_of_are_read_by_name(one: EtcdCluster) -> None:
    registry = one.registry()
    for key in KEYS[:3]:
        one.ctl("put", key, VALUES[0])
    before = registry.snapshot()
    first = before.revision + 1
    one.ctl("put", KEYS[0], VALUES[1])
    one.ctl("put", KEYS[3], VALUES[0])
    one.ctl("del", KEYS[1])
    told = registry.followed(before, {KEYS[0]: first, KEYS[3]: first + 1}, {KEYS[1]: first + 2})
    assert told is not None
    assert essence(told) == essence(registry.snapshot())
    assert told.revision == first + 2


def test_what_a_watch_has_yet_to_tell_is_not_taken_as_read(one: EtcdCluster) -> None:
    registry = one.registry()
    for key in KEYS[:2]:
        one.ctl("put", key, VALUES[0])
    before = registry.snapshot()
    first = before.revision + 1
    one.ctl("put", KEYS[0], VALUES[1])
    one.ctl("put", KEYS[1], VALUES[1])
    told = registry.followed(before, {KEYS[0]: first}, {})
    assert told is not None
    assert told.revision == first
    assert [lease.mod_revision for lease in told.leases] == [first, first - 1]
    rest = registry.changed_since(told, {})
    assert rest is not None
    assert essence(rest) == essence(registry.snapshot())
    one.ctl("del", KEYS[1])
    assert registry.followed(rest, {KEYS[0]: first}, {}) is None, "a key is missing that nobody told of"


def test_a_deletion_of_a_key_that_stands_again_takes_nothing(one: EtcdCluster) -> None:
    registry = one.registry()
    one.ctl("put", KEYS[0], VALUES[0])
    before = registry.snapshot()
    first = before.revision + 1
    one.ctl("del", KEYS[0])
    one.ctl("put", KEYS[0], VALUES[1])
    again = registry.followed(before, {KEYS[0]: first + 1}, {KEYS[0]: first})
    assert again is not None
    assert essence(again) == essence(registry.snapshot())
    late = registry.followed(replace(again, revision=before.revision), {}, {KEYS[0]: first})
    assert late is not None
    assert late.leases == again.leases


def test_more_keys_than_a_transaction_takes_are_not_read_by_name(one: EtcdCluster) -> None:
    registry = one.registry()
    before = registry.snapshot()
    assert registry.followed(before, {f"{KEYS[0]}{number}": 1 for number in range(101)}, {}) is None


def test_the_watch_tells_what_was_written_and_deleted(one: EtcdCluster) -> None:
    written: dict[str, int] = {}
    deleted: dict[str, int] = {}

    def hear(some: Mapping[str, int], others: Mapping[str, int]) -> None:
        written.update(some)
        deleted.update(others)

    changed = threading.Event()
    registry = one.registry()
    client = EtcdClient(one.options())
    watch = Watch(client, registry.watched, changed.set, changed.set, hear)
    watch.start()
    assert changed.wait(60)
    one.ctl("put", KEYS[0], VALUES[0])
    one.ctl("del", KEYS[0])
    eventually(lambda: deleted, "the deletion is told")
    watch.stop()
    client.close()
    last = registry.snapshot().revision
    assert (written, deleted) == ({KEYS[0]: last - 1}, {KEYS[0]: last})
