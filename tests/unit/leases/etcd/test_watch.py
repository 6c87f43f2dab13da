"""What a watch leaves behind when its stream ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_ebpf.base.errors import EtcdRefused
from flannel_ebpf.leases.etcd.session import Session
from flannel_ebpf.leases.etcd.watch import Watch


class RefusedCall:
    """A call that is over before anybody can ask to be told of its end, as gRPC's is at times."""

    def __init__(self, requests: Iterator[Any]) -> None:
        self.reader = threading.Thread(target=lambda: list(requests), daemon=True)  # as gRPC reads them
        self.reader.start()

    def add_callback(self, _callback: object) -> bool:
        return False

    def __iter__(self) -> Iterator[Any]:
        yield SimpleNamespace(canceled=True, cancel_reason="no leader")

    def cancel(self) -> None:
        pass


def test_a_refused_stream_leaves_no_thread() -> None:
    calls: list[RefusedCall] = []

    def watch(requests: Iterator[Any]) -> RefusedCall:
        calls.append(RefusedCall(requests))
        return calls[-1]

    session = cast(Session, SimpleNamespace(watch=watch, target="etcd:2379"))
    follower = Watch(cast(Any, None), "/a/subnets/", lambda: None)
    with pytest.raises(EtcdRefused, match="no leader"):
        follower._follow(session)
    calls[0].reader.join(10)
    assert not calls[0].reader.is_alive()
