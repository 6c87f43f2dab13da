"""What is known of a network's leases: what the source says at one moment, and what counts of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Lease, Skipped


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Every lease at one moment, and what stood among them without being one.

    `revision` and `cluster_id` are etcd's; both are 0 where the source has no such numbers. `subnets` are
    those of the leases, where the source has them at hand.
    """

    revision: int
    cluster_id: int
    leases: tuple[Lease, ...]
    skipped: tuple[Skipped, ...]
    subnets: frozenset[Network] | None = field(default=None, compare=False, repr=False)


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
