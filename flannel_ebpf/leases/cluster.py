"""The other nodes' leases as etcd last told them, held through outages and sudden losses."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from flannel_ebpf.base.errors import EtcdClosed, EtcdError
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Lease, Skipped
from flannel_ebpf.leases.etcd import Registry, Snapshot
from flannel_ebpf.leases.lease_keeper import LeaseKeeper
from flannel_ebpf.leases.snapshot_guard import Seen, SnapshotGuard, Verdict

log = logging.getLogger(__name__)

PERIOD = 60.0
"""Seconds between snapshots that read every key."""
FIRST_RETRY, LONGEST_RETRY = 0.2, 5.0
"""Seconds after a snapshot that failed, doubling."""


@dataclass(frozen=True, slots=True)
class View:
    """The leases that count: the last snapshot's, and those that are not believed to be gone.

    `may_remove` is false while a snapshot is in doubt, and `doubt` says why: nothing that a former process
    left in the kernel is deleted then.
    """

    leases: tuple[Lease, ...] = ()
    skipped: tuple[Skipped, ...] = ()
    may_remove: bool = False
    doubt: str = ""


class Cluster:
    """Follows etcd on a thread of its own, so that an etcd that hangs never delays the kernel's side.

    After a change, what was written since the last snapshot is read; after a failure, a new watch and once
    in PERIOD, everything.
    `programmed` are the subnets found in the kernel at start. `on_change` is called, on that thread, after
    each snapshot that says something new.
    """

    def __init__(
        self,
        registry: Registry,
        keeper: LeaseKeeper,
        grace: float,
        programmed: Iterable[Network],
        on_change: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._keeper = keeper
        self._guard = SnapshotGuard(grace, programmed, keeper.lease.create_revision, continuous=keeper.reused)
        self._on_change = on_change
        self._recheck = PERIOD
        self._wake = threading.Event()
        self._gap = threading.Event()
        self._last: Snapshot | None = None
        self._whole_at = 0.0
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="cluster", daemon=True)
        self.view = View()

    def wake(self) -> None:
        """Read soon what changed in etcd."""
        self._wake.set()

    def wake_after_gap(self) -> None:
        """Read etcd again soon, all of it: changes may have gone by unseen."""
        self._gap.set()
        self._wake.set()

    def start(self) -> None:
        """Follow etcd from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread; the view stays as it is."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        retry = FIRST_RETRY
        self._wake.set()
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
            except EtcdClosed:
                return
            except EtcdError as error:
                log.warning("leases not read, keeping what is known, next try in %.1f s: %s", retry, error)
                retry, wait = min(retry * 2, LONGEST_RETRY), retry
            if self.view != before:
                self._on_change()

    def refresh(self) -> None:
        """Read etcd once; raises EtcdUnavailable or EtcdRefused and then keeps what it had."""
        snapshot = self._read()
        self._keeper.observe(snapshot)
        own = self._keeper.lease
        verdict = self._guard.judge(
            Seen(
                cluster_id=snapshot.cluster_id,
                revision=snapshot.revision,
                subnets=_subnets(snapshot.leases) - set(own.subnets),
                own_created=next((it.create_revision for it in snapshot.leases if it.key == own.key), 0),
            ),
            time.monotonic(),
        )
        held = self._held(snapshot, verdict)
        self._tell(verdict.why, snapshot.skipped)
        doubt = "" if verdict.may_remove else verdict.why
        self.view = View((*snapshot.leases, *held), snapshot.skipped, verdict.may_remove, doubt)
        self._recheck = min(PERIOD, verdict.wait or PERIOD)

    def _read(self) -> Snapshot:
        before, self._last = self._last, None  # after a failure, and only then, it stays None
        if self._gap.is_set() or time.monotonic() >= self._whole_at + PERIOD:
            self._gap.clear()
            before = None
        if before is None:
            self._last, self._whole_at = self._registry.snapshot(), time.monotonic()
        else:
            self._last = self._registry.snapshot_since(before)
        return self._last

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
            log.warning("%s", doubt or "etcd's leases are believed again")
        known = set(self.view.skipped)
        for one in skipped:
            if one not in known:
                log.warning("etcd key %s is skipped: %s", one.key, one.why)


def _subnets(leases: Iterable[Lease]) -> frozenset[Network]:
    return frozenset(part.subnet for lease in leases for part in lease.parts)
