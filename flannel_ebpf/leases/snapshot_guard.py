"""When an etcd snapshot may be believed that peers are gone.

A wiped or restored etcd looks like a cluster that every node has left. Acting on it would cut every pod's
traffic, although all nodes are there and will write their leases again within seconds. So removals wait
for a grace period whenever the snapshot does not continue the one before it. And a single lease that was
deleted or expired under a living node is back within milliseconds, so no removal is instant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from flannel_ebpf.base.family import Network

LINGER = 1.0
"""Seconds for which a lease that vanished still counts: a living node writes it again at once."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What one snapshot says.

    `subnets` are the peers', `own_created` is the create_revision of our own key, 0 when it is not there: it
    tells of a key that was deleted and written again in between.
    """

    cluster_id: int
    revision: int
    subnets: frozenset[Network]
    own_created: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether peers that the snapshot lacks may be removed, all but `keep`; if not, why.

    `wait` is in how many seconds to judge again, 0 when there is nothing to wait for.
    """

    may_remove: bool
    why: str = ""
    wait: float = 0.0
    keep: frozenset[Network] = frozenset()


class SnapshotGuard:
    """Compares each snapshot with the last one believed.

    `grace` is in seconds, 0 believes everything. `programmed` are the peers that a daemon finds in the
    kernel at its start, `own_created` the create_revision of its lease. `continuous` says that it found
    this lease in etcd and did not have to make it: etcd's data is the data those peers came from.
    """

    def __init__(
        self, grace: float, programmed: Iterable[Network], own_created: int, *, continuous: bool
    ) -> None:
        self._grace = grace
        self._believed = Seen(0, 0, frozenset(programmed), own_created)
        self._doubt = "" if continuous else "etcd had no lease of ours when this daemon started"
        self._since: float | None = None
        self._gone: dict[Network, float] = {}

    def judge(self, seen: Seen, now: float) -> Verdict:
        """Return what to do about peers missing from `seen`; `now` is a monotonic clock in seconds.

        A doubt stays, also when later snapshots look well, until the missing peers are back or the grace
        period is over: the keys of a wiped etcd come back one by one.
        """
        doubt = self._doubt or self._discontinuity(seen)
        missing = self._believed.subnets - seen.subnets
        self._gone = {subnet: self._gone.get(subnet, now) for subnet in missing}
        if not doubt or not missing:
            return self._believe(seen, now)
        if self._since is None:
            self._since = now
        wait = self._since + self._grace - now
        if wait <= 0:
            return self._believe(seen, now)
        self._doubt = doubt
        return Verdict(False, f"{doubt}; keeping {len(missing)} peers that it no longer lists", wait)

    def _discontinuity(self, seen: Seen) -> str:
        before = self._believed
        if before.cluster_id not in (0, seen.cluster_id):
            return f"etcd's cluster id changed from {before.cluster_id:x} to {seen.cluster_id:x}"
        if seen.revision < before.revision:
            return f"etcd's revision went back from {before.revision} to {seen.revision}"
        if seen.own_created != before.own_created:
            return "our own lease vanished from etcd"
        return ""

    def _believe(self, seen: Seen, now: float) -> Verdict:
        linger = min(LINGER, self._grace)
        left = {subnet: since + linger - now for subnet, since in self._gone.items() if now < since + linger}
        keep = frozenset(left)
        believed = replace(seen, subnets=seen.subnets | keep) if keep else seen  # spares a copy of 50,000
        self._believed, self._doubt, self._since = believed, "", None
        return Verdict(True, wait=min(left.values(), default=0.0), keep=keep)
