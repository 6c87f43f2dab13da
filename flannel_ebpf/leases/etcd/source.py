"""Etcd as the source of leases, with flannel's keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from contextlib import ExitStack

from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.config_keys import unknown_keys
from flannel_ebpf.base.errors import ConfigError, LeaseLost
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import Claim, Lease, LeasePart
from flannel_ebpf.base.options import Options
from flannel_ebpf.leases.cluster import Cluster
from flannel_ebpf.leases.etcd.client import EtcdClient
from flannel_ebpf.leases.etcd.reader import SnapshotReader
from flannel_ebpf.leases.etcd.registry import Registry
from flannel_ebpf.leases.etcd.watch import Watch
from flannel_ebpf.leases.lease_format import config_key
from flannel_ebpf.leases.lease_keeper import LeaseKeeper
from flannel_ebpf.leases.servers import Servers
from flannel_ebpf.leases.snapshot import Snapshot, View
from flannel_ebpf.leases.snapshot_guard import SnapshotGuard

log = logging.getLogger(__name__)

EXAMPLE = '{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}'


class EtcdSource:
    """A LeaseSource; see flannel_ebpf.leases.source for what its methods promise. Raises ConfigError."""

    def __init__(self, options: Options, on_lost: Callable[[LeaseLost], None]) -> None:
        self._endpoints = options.etcd.endpoints
        self._grace = options.wipe_grace
        self._client = EtcdClient(options.etcd)
        self._servers = Servers(self._client.hosts)
        self._registry = Registry(self._client, options.etcd.prefix)
        self._keeper = LeaseKeeper(
            self._registry, on_lost, ttl=options.lease_ttl, margin=int(options.renew_margin)
        )
        self._cluster: Cluster | None = None
        self._threads = ExitStack()

    @property
    def where(self) -> str:
        """What is asked, for people."""
        return f"etcd at {', '.join(self._endpoints)}"

    @property
    def servers(self) -> Collection[Address]:
        """The addresses of what is asked."""
        return self._servers.addresses

    @property
    def lease(self) -> Lease:
        """Our own lease as last written."""
        return self._keeper.lease

    @property
    def reused(self) -> bool:
        """Whether the lease that was acquired stood there before."""
        return self._keeper.reused

    @property
    def view(self) -> View:
        """The leases that count now."""
        return self._cluster.view if self._cluster else View()

    def network_config(self) -> NetworkConfig:
        """Read the network config from its key."""
        text = self._registry.network_config()
        source = f"etcd key {config_key(self._registry.prefix)}"
        if text is None:
            raise ConfigError(source, None, "the network config, such as " + EXAMPLE)
        config = parse_network_config(text, source)
        for key in unknown_keys(text):
            log.warning("%s: key %s is none of flannel's and is ignored", source, key)
        return config

    def addresses(self) -> dict[Family, Address]:
        """Return nothing: etcd knows a node by the address that it has."""
        return {}

    def former(self, addresses: Collection[Address]) -> tuple[LeasePart, ...]:
        """Return what leases say that carry one of `addresses`."""
        leases = self._registry.snapshot().leases
        return tuple(part for lease in leases for part in lease.parts if part.public_ip in addresses)

    def snapshot(self) -> Snapshot:
        """Read all leases now."""
        return self._registry.snapshot()

    def seconds_left(self, lease: Lease) -> float | None:
        """Return how long a lease still lives, None for a reservation."""
        return self._registry.seconds_left(lease)

    def acquire(self, config: NetworkConfig, claim: Claim, previous: Collection[Network]) -> Lease:
        """Take a lease by flannel's rules."""
        return self._keeper.acquire(config, claim, previous)

    def update(self, claim: Claim) -> None:
        """Publish something else under the same key."""
        self._keeper.update(claim)

    def follow(self, programmed: Iterable[Network], on_change: Callable[[], None]) -> None:
        """Renew our lease and follow etcd."""
        self._servers.resolve()
        keeper = self._keeper
        reader = SnapshotReader(self._registry, keeper.observe, self._registry.last)
        guard = SnapshotGuard(self._grace, programmed, keeper.lease.create_revision, continuous=keeper.reused)
        self._cluster = Cluster(reader.read, lambda: keeper.lease, guard, on_change)
        wake, wake_after_gap = self._cluster.wake, self._cluster.wake_after_gap
        watch = Watch(self._client, self._registry.watched, wake, wake_after_gap, reader.hear)
        for thread in (keeper, self._cluster, watch):
            thread.start()
            self._threads.callback(thread.stop)
        self._cluster.wake()

    def ready(self) -> None:
        """Do nothing: etcd holds no word of it."""

    def interrupt(self) -> None:
        """End all requests."""
        self._client.close()

    def close(self) -> None:
        """End all threads; the lease stays in etcd until it expires."""
        self._threads.close()
        self._client.close()
