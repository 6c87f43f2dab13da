"""Reads etcd's leases as cheaply as is safe."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue

from flannel_ebpf.leases.etcd.registry import Registry
from flannel_ebpf.leases.snapshot import Snapshot

WHOLE, LONGEST = 60.0, 600.0
"""Seconds between snapshots that read every key: the more keys there are, the rarer."""
SHARE = 0.001
"""Part of one CPU that they may take."""
PATIENCE = 0.05
"""Seconds after which a deletion that etcd counts should have been heard of."""


class SnapshotReader:
    """Reads what was written since the last snapshot; everything after a failure, and now and then.

    `show` is given each snapshot; `last` is one that was read a moment ago.
    """

    def __init__(
        self,
        registry: Registry,
        show: Callable[[Snapshot], None],
        last: Snapshot | None = None,
    ) -> None:
        self._registry = registry
        self._heard = SimpleQueue[tuple[Mapping[str, int], Mapping[str, int]]]()
        self._written: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._show = show
        self._last = last
        self._whole_due = time.monotonic() + WHOLE

    def hear(self, written: Mapping[str, int], deleted: Mapping[str, int]) -> None:
        """Be told, from any thread, in order, of keys written or deleted, each with the revision of that."""
        self._heard.put((written, deleted))

    def read(self, *, whole: bool) -> Snapshot:
        """Return all leases; raises EtcdUnavailable, EtcdRefused."""
        before, self._last = self._last, None  # after a failure, and only then, it stays None
        if before is None or whole or time.monotonic() >= self._whole_due:
            begun = time.thread_time()
            found = self._registry.snapshot()
            cost = time.thread_time() - begun
            self._whole_due = time.monotonic() + min(max(cost / SHARE, WHOLE), LONGEST)
        else:
            found = self._changed_since(before) or self._registry.snapshot()
        self._last = found
        self._written = _after(found.revision, self._written)
        self._gone = _after(found.revision, self._gone)
        self._show(found)
        return found

    def _changed_since(self, before: Snapshot) -> Snapshot | None:
        """Return what changed, None when that takes all keys; a deletion may be heard of late."""
        self._listen()
        if self._written or self._gone:
            found = self._registry.followed(before, self._written, self._gone)
            if found:
                return found
        for patience in (0.0, PATIENCE):
            time.sleep(patience)
            self._listen()
            found = self._registry.changed_since(before, self._gone)
            if found:
                return found
        return None

    def _listen(self) -> None:
        while not self._heard.empty():
            written, gone = self._heard.get()
            self._written |= written
            self._gone |= gone


def _after(revision: int, heard: Mapping[str, int]) -> dict[str, int]:
    return {key: of for key, of in heard.items() if of > revision}
