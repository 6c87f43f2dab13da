"""A watch that wakes, and carries nothing but the names of the keys that were written or deleted.

Each stream starts at etcd's present and wakes its listener once it stands, so whatever happened while there
was none is found by the listener's next snapshot. No revision is remembered: compaction, a restored etcd
and a restarted cluster are all just a new stream.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from flannel_ebpf.base import tally
from flannel_ebpf.base.errors import EtcdError, EtcdRefused, SourceClosed
from flannel_ebpf.base.say_once import SayOnce
from flannel_ebpf.leases.etcd import messages
from flannel_ebpf.leases.etcd.client import EtcdClient
from flannel_ebpf.leases.etcd.registry import prefix_end
from flannel_ebpf.leases.etcd.rpc import grpc
from flannel_ebpf.leases.etcd.session import Session, translate

log = logging.getLogger(__name__)

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts, doubling from the first to the longest, as flannel does."""


class Watch:
    """A thread that calls `on_change` after changes under `prefix`, and `on_stream` after every new stream.

    `on_events` is told before that which keys were written and which deleted, each with the revision of that.
    All run on the watch's thread and must return at once. Before a new stream anything may have happened.
    """

    def __init__(
        self,
        client: EtcdClient,
        prefix: str,
        on_change: Callable[[], None],
        on_stream: Callable[[], None] | None = None,
        on_events: Callable[[Mapping[str, int], Mapping[str, int]], None] = lambda _written, _deleted: None,
    ) -> None:
        self._client = client
        self._prefix = prefix.encode()
        self._on_change = on_change
        self._on_stream = on_stream or on_change
        self._on_events = on_events
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._call: Any = None
        self._pause = FIRST_PAUSE
        self._trouble = SayOnce(log)
        self._thread = threading.Thread(target=self._run, name="etcd-watch", daemon=True)
        self.connected = False

    def start(self) -> None:
        """Start watching."""
        self._thread.start()

    def stop(self) -> None:
        """End the stream and the thread."""
        self._stopped.set()
        with self._lock:
            if self._call is not None:
                self._call.cancel()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                session = self._client.session()
            except SourceClosed:
                return
            try:
                self._follow(session)
            except EtcdError as error:
                if self._stopped.is_set() or self._client.closed:
                    return
                self._trouble.say(f"watch of etcd ended, trying again: {error}")
                if isinstance(error, EtcdRefused):
                    session.forget_token()
                else:
                    self._client.drop(session)
            self.connected = False
            self._stopped.wait(self._pause)
            self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def _follow(self, session: Session) -> None:
        """Read one stream until it ends; raises EtcdUnavailable or EtcdRefused when it ends badly."""
        ended = threading.Event()
        call = session.watch(self._requests(ended))
        with self._lock:
            self._call = call
        if self._stopped.is_set():
            call.cancel()
        try:
            for response in call:
                if response.canceled:
                    raise EtcdRefused(f"{session.target}: watch cancelled: {response.cancel_reason}")
                if response.created:
                    log.info("watching etcd at %s", session.target)
                    tally.count("etcd_watches")
                    self.connected, self._pause = True, FIRST_PAUSE
                    self._trouble.over()
                    self._on_stream()
                if response.events:
                    self._on_events(*_keys(response.events))
                    self._on_change()
        except grpc.RpcError as error:
            raise translate(session.target, error) from None
        finally:
            ended.set()  # a callback of the call would not be called when the call is over already
            call.cancel()

    def _requests(self, ended: threading.Event) -> Iterator[Any]:
        request = messages.WatchRequest()
        request.create_request.key = self._prefix
        request.create_request.range_end = prefix_end(self._prefix)
        yield request
        ended.wait()  # a client that has no more to say would close its half of the stream


def _keys(events: Iterable[Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the keys that were written and those that were deleted, each with its last revision."""
    written: dict[str, int] = {}
    deleted: dict[str, int] = {}
    for event in events:
        keys = deleted if event.type == messages.DELETED else written
        keys[event.kv.key.decode(errors="replace")] = event.kv.mod_revision
    return written, deleted
