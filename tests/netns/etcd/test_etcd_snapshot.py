"""What was written since a snapshot, read from a real etcd, leads to just what a whole read shows."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.leases.etcd import Registry
from flannel_ebpf.leases.snapshot import Snapshot
from tests.netns.etcd_cluster import EtcdCluster

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
