"""Reads etcd's leases as cheaply as is safe."""

from __future__ import annotations

import time
from collections.abc import Callable

from flannel_ebpf.leases.etcd.registry import Registry
from flannel_ebpf.leases.snapshot import Snapshot

WHOLE, LONGEST = 60.0, 600.0
"""Seconds between snapshots that read every key: the more keys there are, the rarer."""
SHARE = 0.001
"""Part of one CPU that they may take."""


class SnapshotReader:
    """Reads what was written since the last snapshot; everything after a failure, and now and then.

    `show` is given each snapshot.
    """

    def __init__(self, registry: Registry, show: Callable[[Snapshot], None]) -> None:
        self._registry = registry
        self._show = show
        self._last: Snapshot | None = None
        self._whole_due = 0.0

    def read(self, *, whole: bool) -> Snapshot:
        """Return all leases; raises EtcdUnavailable, EtcdRefused."""
        before, self._last = self._last, None  # after a failure, and only then, it stays None
        if before is None or whole or time.monotonic() >= self._whole_due:
            begun = time.thread_time()
            found = self._registry.snapshot()
            cost = time.thread_time() - begun
            self._whole_due = time.monotonic() + min(max(cost / SHARE, WHOLE), LONGEST)
        else:
            found = self._registry.snapshot_since(before)
        self._last = found
        self._show(found)
        return found
