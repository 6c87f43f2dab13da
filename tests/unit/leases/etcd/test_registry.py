"""A write that etcd refuses: the grant behind it is given back, unless it may hold our key already."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_ebpf.base.errors import EtcdRefused, EtcdUnavailable
from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.leases.etcd import Registry
from flannel_ebpf.leases.etcd import client as module
from flannel_ebpf.leases.etcd.client import EtcdClient
from tests.samples import lease

GRANT = 7


class Etcd:
    """Two endpoints that answer each write in turn as they are told to, and grant leases at once."""

    def __init__(self, *answers: Exception) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def counted(self, _session: object, name: str, _request: Any) -> Any:
        self.asked.append(name)
        if name == "KV/Txn":
            raise self.answers.pop(0)
        return SimpleNamespace(ID=GRANT)


def registry(etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> Registry:
    client = EtcdClient(EtcdOptions(endpoints=("http://192.0.2.1:2379", "http://192.0.2.2:2379")))
    monkeypatch.setattr(client, "session", lambda: SimpleNamespace(target="192.0.2.1:2379"))
    monkeypatch.setattr(client, "drop", lambda _session: None)
    monkeypatch.setattr(module, "_counted", etcd.counted)
    return Registry(cast(EtcdClient, client), "/net")


def refused() -> EtcdRefused:
    return EtcdRefused("192.0.2.2:2379: RESOURCE_EXHAUSTED: too many requests")


@pytest.mark.parametrize(
    ("answers", "revoked"),
    [
        ([refused()], True),
        ([EtcdUnavailable("192.0.2.1:2379: deadline exceeded"), refused()], False),
    ],
    ids=["refused", "refused after a try without an answer"],
)
def test_a_grant_that_may_hold_our_key_is_not_revoked(
    monkeypatch: pytest.MonkeyPatch, answers: list[Exception], revoked: bool
) -> None:
    etcd = Etcd(*answers)
    with pytest.raises(EtcdRefused):
        registry(etcd, monkeypatch).create(lease("10.1.5.0/24", "192.168.64.1"), 600)
    assert ("Lease/LeaseRevoke" in etcd.asked) == revoked
