"""Reads etcd's leases as cheaply as is safe."""

from __future__ import annotations

import time
from collections.abc import Callable

from flannel_ebpf.leases.etcd.registry import Registry
from flannel_ebpf.leases.snapshot import Snapshot

WHOLE = 60.0
"""Seconds between snapshots that read every key."""


class SnapshotReader:
    """Reads what was written since the last snapshot; everything after a failure, and once in WHOLE.

    `show` is given each snapshot.
    """

    def __init__(self, registry: Registry, show: Callable[[Snapshot], None]) -> None:
        self._registry = registry
        self._show = show
        self._last: Snapshot | None = None
        self._whole_at = 0.0

    def read(self, *, whole: bool) -> Snapshot:
        """Return all leases; raises EtcdUnavailable, EtcdRefused."""
        before, self._last = self._last, None  # after a failure, and only then, it stays None
        if before is None or whole or time.monotonic() >= self._whole_at + WHOLE:
            found, self._whole_at = self._registry.snapshot(), time.monotonic()
        else:
            found = self._registry.snapshot_since(before)
        self._last = found
        self._show(found)
        return found
