"""Takes this node's subnet lease and keeps it.

Keeping is level-triggered like everything else: whatever the reason to look (renewal due, something changed
in etcd, a new public address), one function reads the key and makes it what it should be. It never
writes over another node, and it gives up only when the key carries another node's address.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from random import SystemRandom

from flannel_ebpf.base import tally
from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.errors import (
    ConfigError,
    EtcdError,
    InvalidLease,
    LeaseConflict,
    LeaseError,
    LeaseLost,
    SourceClosed,
)
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Claim, Lease, named
from flannel_ebpf.leases.allocate import Reuse, Try, choose, rival
from flannel_ebpf.leases.etcd.registry import Registry
from flannel_ebpf.leases.lease_format import Item, parse_item
from flannel_ebpf.leases.snapshot import Snapshot

log = logging.getLogger(__name__)

DAY = 86400
HOUR = 3600
TRIES = 10
"""Times to choose another subnet after a conflict, flannel's own number."""
CONTESTS, CONTEST_WINDOW = 20, 5.0
"""So many foreign writes to our key under our address in so many seconds: a second node has the address.

That many, because a supervisor may start the second node over and over, and the first must outlast it.
"""
CONTESTS_OF_NEWCOMER, NEWCOMER = 2, 60.0
"""A node that found the lease there and has had it for less than those seconds gives way at once."""
LONGEST_WAIT = 60.0
"""Seconds between looks at the clock: a timed wait does not count the time a machine is suspended."""


class LeaseKeeper:
    """One node's lease. `acquire` first, then `start`; `stop` leaves the lease in etcd, as flannel does.

    `ttl` and `margin` (renewal before expiry) are seconds. A renewal that failed is tried again after a tenth
    of the TTL, a minute at most, and as soon as etcd is seen to answer. `on_lost` is called once, on the
    keeper's thread, when another node owns the subnet.
    Raises ConfigError unless 0 < margin < ttl.
    """

    def __init__(
        self,
        registry: Registry,
        on_lost: Callable[[LeaseLost], None],
        *,
        ttl: int = DAY,
        margin: int = HOUR,
    ) -> None:
        if not 0 < margin < ttl:
            raise ConfigError(
                "lease renewal margin", f"{margin} s", f"more than 0 and less than the TTL of {ttl} s"
            )
        self._registry, self._on_lost = registry, on_lost
        self._ttl, self._margin, self._retry = ttl, margin, min(ttl / 10, LONGEST_WAIT)
        self._rng = SystemRandom()
        self._lease: Lease | None = None
        self._wanted: Lease | None = None
        self._renew_at = self._look_at = 0.0
        self._contests: deque[float] = deque(maxlen=CONTESTS)
        self._settled_at = 0.0
        self._unanswered = False
        self._vetted = 0
        self._rival: Lease | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        self.reused = False

    @property
    def lease(self) -> Lease:
        """The lease as last written; only after `acquire`."""
        if self._lease is None:
            raise LeaseError("no lease has been acquired yet")
        return self._lease

    def acquire(self, config: NetworkConfig, claim: Claim, previous: Collection[Network]) -> Lease:
        """Take a lease by flannel's rules and return it; `reused` then says if it was ours before.

        `previous` are the subnets that this node last had. Raises OutOfSubnets, LeaseConflict when ten
        choices in a row were taken by others at the same moment, EtcdUnavailable, EtcdRefused.
        """
        for _ in range(TRIES):
            snapshot = self._registry.latest()
            choice = choose(config, snapshot.leases, claim, previous, self._rng)
            try:
                lease = self._take(choice, claim, snapshot)
            except LeaseConflict as error:
                log.info("%s; choosing again", error)
                if isinstance(choice, Try):
                    previous = [subnet for subnet in previous if subnet not in choice.subnets]
                continue
            self.reused = isinstance(choice, Reuse)
            self._settled_at = _now() + NEWCOMER if self.reused else 0.0
            self._wrote(lease)
            return lease
        raise LeaseConflict(f"{TRIES} choices in a row were taken by other nodes while we asked for them")

    def start(self) -> None:
        """Start keeping the lease."""
        self._thread.start()

    def update(self, claim: Claim) -> None:
        """Publish other addresses or other backend data under the same key, as soon as etcd answers."""
        if claim.public_ip != self.lease.public_ip:
            self._registry.reconnect()
        self._wanted = self.lease.with_claim(claim)
        self._wake.set()

    def observe(self, snapshot: Snapshot) -> None:
        """Look after the key when `snapshot` shows it gone or changed; returns at once.

        A write that failed is tried again too: a snapshot means that etcd answers.
        """
        mine = self.lease
        if (
            self._vetted < mine.create_revision <= snapshot.revision
        ):  # we made it, and nobody has compared it yet
            self._vetted, self._rival = mine.create_revision, rival(mine, snapshot.leases)
        if (
            self._rival
            or self._unanswered
            or not any(it.mod_revision == mine.mod_revision and it == mine for it in snapshot.leases)
        ):
            self._wake.set()

    def stop(self) -> None:
        """Stop keeping the lease, which stays in etcd until it expires."""
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _take(self, choice: Reuse | Try, claim: Claim, before: Snapshot) -> Lease:
        if isinstance(choice, Reuse):
            ours = choice.lease.with_claim(claim)
            if ours == choice.lease and not ours.etcd_lease:
                return ours
            return self._registry.rewrite(ours, self._ttl if ours.etcd_lease else 0)
        for lease in choice.stale:
            log.info("deleting our old lease %s, which the network config no longer allows", lease.key)
            self._registry.delete(lease)
        made = self._registry.create_alone(Lease.of(choice.subnets, claim), self._ttl, before)
        self._vetted = made.create_revision
        return made

    def _run(self) -> None:
        while True:
            woken = self._wake.wait(min(max(self._look_at - _now(), 0.0), LONGEST_WAIT))
            self._wake.clear()
            if self._stopping:
                return
            if not woken and _now() < self._look_at:
                continue
            try:
                self._keep()
            except LeaseLost as error:
                log.error("%s", error)
                self._on_lost(error)
                return
            except LeaseConflict:
                self._wake.set()  # the key changed between our read and our write: look again
            except SourceClosed:
                return
            except EtcdError as error:
                self._unanswered = True
                tally.count("lease_renewals", "failed")
                self._look_at = _now() + self._retry
                log.warning(
                    "lease %s not looked after, next try in %g s: %s", self.lease.key, self._retry, error
                )

    def _keep(self) -> None:
        """Make our key what it should be; raises LeaseLost, LeaseConflict, EtcdUnavailable, EtcdRefused."""
        mine = self.lease
        if self._rival:
            self._give_way(self._rival)
        wanted = replace(self._wanted or mine, extra=mine.extra, etcd_lease=mine.etcd_lease)
        item = self._registry.read(mine.key)
        if item is None:
            log.warning("our lease %s is gone from etcd; writing it again", mine.key)
            self._wrote(self._registry.create(wanted, self._ttl))
            return
        held = _parse(item)
        if held is not None:
            self._check_owner(held, wanted)
            wanted = replace(wanted, extra=held.extra, etcd_lease=held.etcd_lease)
        wanted = replace(wanted, mod_revision=item.mod_revision, create_revision=item.create_revision)
        permanent = wanted.etcd_lease == 0
        renewal = not permanent and (_now() >= self._renew_at or wanted.etcd_lease != mine.etcd_lease)
        if wanted == held and not renewal:
            self._wrote(held, renewed=False)
            return
        self._wrote(self._registry.rewrite(wanted, 0 if permanent else self._ttl))

    def _give_way(self, first: Lease) -> None:
        """Take our lease back: while its key was away, a subnet in it went to another node."""
        with suppress(LeaseConflict):
            self._registry.delete(self.lease)
        shared = f"subnet {named(self.lease.subnets)} ({self.lease.key}) is shared with {first.key}"
        raise LeaseLost(f"{shared}, the key of {first.public_ip}, which was there before ours came back")

    def _check_owner(self, held: Lease, wanted: Lease) -> None:
        """Raise LeaseLost when the key is another node's, by its address or by its stubbornness."""
        mine = self.lease
        if not (held.held_by(mine.claim) or held.held_by(wanted.claim)):
            raise LeaseLost(
                f"subnet {named(mine.subnets)} belongs to the node with public IP {held.public_ip} now "
                f"({mine.key}); ours was {mine.public_ip}"
            )
        if held.mod_revision == mine.mod_revision:
            return
        if held.claim in (mine.claim, wanted.claim):
            by_operator = 0 in (held.etcd_lease, mine.etcd_lease)  # reserve and unreserve
            if held.etcd_lease == mine.etcd_lease or by_operator or self._unanswered:
                return
        self._contests.append(_now())
        limit, window = CONTESTS, CONTEST_WINDOW
        data = held.claim.endpoints[0].backend_data
        if _now() < self._settled_at:
            limit, window = CONTESTS_OF_NEWCOMER, NEWCOMER
        if len(self._contests) >= limit and _now() - self._contests[-limit] < window:
            raise LeaseLost(
                f"another node keeps writing {mine.key} with our public IP {held.public_ip} and backend "
                f"data {data!r}; every node needs a --public-ip of its own"
            )
        log.warning("%s was written by another, backend data %r; writing ours", mine.key, data)

    def _wrote(self, lease: Lease, *, renewed: bool = True) -> None:
        """Remember `lease` as what etcd holds; `renewed`: its TTL has just begun."""
        self._lease, self._unanswered = lease, False
        if not lease.etcd_lease:
            self._renew_at = float("inf")
        elif renewed:
            tally.count("lease_renewals", "ok")
            tally.mark("lease_expiry", _now() + self._ttl)
            self._renew_at = _now() + self._ttl - self._margin
        self._look_at = self._renew_at


def _now() -> float:
    """Seconds on the clock that no one can set and that counts suspended time: a TTL runs on meanwhile."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _parse(item: Item) -> Lease | None:
    try:
        return parse_item(item)
    except InvalidLease as error:
        log.warning("our own lease was overwritten, writing ours again: %s", error)
        return None
