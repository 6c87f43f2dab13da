"""The other nodes' leases as the source last told them, held through outages and sudden losses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from flannel_ebpf.base.errors import SourceClosed, SourceError
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Lease, Skipped
from flannel_ebpf.leases.snapshot import Snapshot, View
from flannel_ebpf.leases.snapshot_guard import Seen, SnapshotGuard, Verdict

log = logging.getLogger(__name__)

PERIOD, EACH = 60.0, 0.012
"""Seconds between snapshots that nothing asked for; from 5,000 leases on it is EACH for each of them."""
FIRST_RETRY, LONGEST_RETRY = 0.2, 5.0
"""Seconds after a snapshot that failed, doubling."""


class Read(Protocol):
    """How a source is read."""

    def __call__(self, *, whole: bool) -> Snapshot:
        """Return all leases; with `whole` by reading all anew. Raises SourceError."""


class Cluster:
    """Follows a source on a thread of its own, so that one that hangs never delays the kernel's side.

    It reads when it is woken, and every PERIOD or later. `own` returns our own lease. `on_change` is called,
    on that thread, after each snapshot that says something new.
    """

    def __init__(
        self, read: Read, own: Callable[[], Lease], guard: SnapshotGuard, on_change: Callable[[], None]
    ) -> None:
        self._read = read
        self._own = own
        self._guard = guard
        self._on_change = on_change
        self._recheck = PERIOD
        self._wake = threading.Event()
        self._gap = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self.view = View()

    def wake(self) -> None:
        """Read soon what changed."""
        self._wake.set()

    def wake_after_gap(self) -> None:
        """Read again soon, all of it: changes may have gone by unseen."""
        self._gap.set()
        self._wake.set()

    def start(self) -> None:
        """Follow the source from now on; the first read is in PERIOD, or when woken."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the view stays as it is."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        retry = FIRST_RETRY
        wait = PERIOD
        while True:
            self._wake.wait(wait)
            self._wake.clear()
            if self._stopping:
                return
            before = self.view
            try:
                self.refresh()
                retry, wait = FIRST_RETRY, self._recheck
            except SourceClosed:
                return
            except SourceError as error:
                log.warning("leases not read, keeping what is known, next try in %.1f s: %s", retry, error)
                retry, wait = min(retry * 2, LONGEST_RETRY), retry
            if self.view != before:
                self._on_change()

    def refresh(self) -> None:
        """Read once; raises SourceError and then keeps what it had."""
        whole = self._gap.is_set()
        self._gap.clear()
        snapshot = self._read(whole=whole)
        own = self._own()
        verdict = self._guard.judge(
            Seen(
                cluster_id=snapshot.cluster_id,
                revision=snapshot.revision,
                subnets=(snapshot.subnets or _subnets(snapshot.leases)) - set(own.subnets),
                own_created=next((it.create_revision for it in snapshot.leases if it.key == own.key), 0),
            ),
            time.monotonic(),
        )
        held = self._held(snapshot, verdict)
        self._tell(verdict.why, snapshot.skipped)
        doubt = "" if verdict.may_remove else verdict.why
        self.view = View((*snapshot.leases, *held), snapshot.skipped, verdict.may_remove, doubt)
        period = max(PERIOD, EACH * len(snapshot.leases))
        self._recheck = min(period, verdict.wait or period)

    def _held(self, snapshot: Snapshot, verdict: Verdict) -> list[Lease]:
        """Return the leases that `snapshot` lacks and that count nevertheless."""
        if verdict.may_remove and not verdict.keep:
            return []
        listed = _subnets(snapshot.leases)
        moved = {lease.public_ip for lease in snapshot.leases}  # a node that has another subnet now
        return [
            it
            for it in self.view.leases
            if listed.isdisjoint(it.subnets) and it.public_ip not in moved
            if not verdict.may_remove or not verdict.keep.isdisjoint(it.subnets)
        ]

    def _tell(self, doubt: str, skipped: tuple[Skipped, ...]) -> None:
        if bool(doubt) != bool(self.view.doubt):
            log.warning("%s", doubt or "the leases are believed again")
        known = set(self.view.skipped)
        for one in skipped:
            if one not in known:
                log.warning("%s is skipped: %s", one.key, one.why)


def _subnets(leases: Iterable[Lease]) -> frozenset[Network]:
    return frozenset(part.subnet for lease in leases for part in lease.parts)
