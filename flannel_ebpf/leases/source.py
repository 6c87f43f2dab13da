"""Where a network's config and its leases stand: etcd, or Kubernetes. Nobody above needs to know which.

One source serves one node: it reads the config, publishes this node's lease and looks after it, and follows
the other nodes' leases through outages and sudden losses.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.errors import LeaseLost
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import Claim, Lease, LeasePart
from flannel_ebpf.base.options import Options
from flannel_ebpf.leases.snapshot import Snapshot, View


class LeaseSource(Protocol):
    """One node's side of a network. All but `interrupt` are called on one thread, a daemon's in this order.

    Every method that asks the source raises SourceError when that does not answer or refuses.
    """

    @property
    def where(self) -> str:
        """What is asked, for people: "etcd at http://127.0.0.1:2379"."""

    @property
    def servers(self) -> Collection[Address]:
        """The addresses of what is asked, as far as they are known by now."""

    def network_config(self) -> NetworkConfig:
        """Return the network config; raises ConfigError, also when there is none yet."""

    def addresses(self) -> Mapping[Family, Address]:
        """Return the public addresses that the source says this node has: they win over the flags'.

        Raises ConfigError.
        """

    def former(self, addresses: Collection[Address]) -> tuple[LeasePart, ...]:
        """Return what is published already of the node with these public addresses."""

    def snapshot(self) -> Snapshot:
        """Read all leases now; for commands, a daemon has `view`."""

    def seconds_left(self, lease: Lease) -> float | None:
        """Return how long a lease still lives if nobody renews it, None for one that never ends."""

    def acquire(self, config: NetworkConfig, claim: Claim, previous: Collection[Network]) -> Lease:
        """Take a lease that says `claim`; `previous` are the subnets that this node last had.

        Raises LeaseError.
        """

    @property
    def reused(self) -> bool:
        """Whether the lease that was acquired stood there before."""

    @property
    def lease(self) -> Lease:
        """Our own lease as last written."""

    def update(self, claim: Claim) -> None:
        """Publish something else in the same lease, as soon as the source answers; returns at once."""

    def follow(self, programmed: Iterable[Network], on_change: Callable[[], None]) -> None:
        """Keep our own lease and follow the others' from now on.

        `programmed` are the subnets found in the kernel at start. `on_change` is called, on another thread,
        whenever the view has changed.
        """

    @property
    def view(self) -> View:
        """The leases that count now."""

    def ready(self) -> None:
        """Tell the cluster that packets can flow here; returns at once."""

    def interrupt(self) -> None:
        """End requests that are under way, from any thread: the daemon stops."""

    def close(self) -> None:
        """End all threads; the lease stays."""


def open_source(
    options: Options, on_lost: Callable[[LeaseLost], None], environment: Mapping[str, str] = os.environ
) -> LeaseSource:
    """Return the source that the options name; raises ConfigError.

    `on_lost` is called once, on another thread, when our subnet belongs to another node. `environment` says
    which of Kubernetes' nodes we are. The clients are imported here, because each costs memory that only its
    own users should pay.
    """
    if options.kube.kube_subnet_mgr:
        from flannel_ebpf.leases.kube.source import KubeSource  # noqa: PLC0415 - see above

        return KubeSource(options.kube, environment, options.wipe_grace, on_lost)
    from flannel_ebpf.leases.etcd.source import EtcdSource  # noqa: PLC0415 - see above

    return EtcdSource(options, on_lost)
