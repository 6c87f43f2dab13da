"""The lease side of a daemon alone: keeper, watch and a loop that reads a snapshot whenever it is woken."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, ip_network
from typing import Any

from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.errors import EtcdError, LeaseLost
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Claim, Lease
from flannel_ebpf.cli import main
from flannel_ebpf.leases.etcd import EtcdClient, EtcdOptions, Registry, Snapshot, Watch
from flannel_ebpf.leases.lease_keeper import DAY, HOUR, LeaseKeeper
from flannel_ebpf.leases.snapshot_guard import Seen, SnapshotGuard
from tests.netns.etcd_cluster import EtcdCluster
from tests.samples import claim as sample

PREFIX = "/coreos.com/network"
CONFIG_TEXT = '{"Network":"10.1.0.0/16","SubnetMin":"10.1.70.0","Backend":{"Type":"vxlan"}}'
CONFIG = parse_network_config(CONFIG_TEXT, "test")
"""Nodes draw from 10.1.70.0 to 10.1.169.0; subnets outside that are the tests' to place."""

SUBNETS = f"{PREFIX}/subnets"
FAR = IPv4Network("10.1.200.0/24")
KEY = f"{SUBNETS}/10.1.200.0-24"
"""FAR's key."""

GRACE = 5.0


def vtep(number: int) -> dict[str, object]:
    return {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"}


def in_etcd(registry: Registry, subnet: Network = FAR) -> Lease | None:
    return next((lease for lease in registry.snapshot().leases if subnet in lease.subnets), None)


def claim(public_ip: str, data: Any) -> Claim:
    return sample(public_ip, "vxlan", data)


def subnets_of(snapshot: Snapshot) -> frozenset[Network]:
    return frozenset(subnet for lease in snapshot.leases for subnet in lease.subnets)


def operate(etcd: EtcdCluster, command: str, *words: str) -> int:
    """Run a command as an operator would and return its exit status."""
    return main([command, *words, f"--etcd-endpoints={','.join(etcd.endpoints)}", f"--etcd-prefix={PREFIX}"])


def value(etcd: EtcdCluster, key: str = KEY) -> str:
    return etcd.ctl("get", "--print-value-only", key).strip()


def ttl(etcd: EtcdCluster, lease: Lease) -> int:
    """Return the seconds that etcd will still keep the lease's key."""
    return int(json.loads(etcd.ctl("lease", "timetolive", f"{lease.etcd_lease:x}", "-w=json"))["ttl"])


class LeaseNode:
    """Node number `number` with public IP 192.168.0.<number>; `snapshot` is what it read last."""

    def __init__(
        self,
        options: EtcdOptions,
        number: int,
        *,
        config: NetworkConfig = CONFIG,
        ttl: int = DAY,
        margin: int = HOUR,
        retry: float = 0.5,
        public_ip: str = "",
        backend_data: Any = None,
    ) -> None:
        self.number, self.config = number, config
        self.claim = claim(public_ip or f"192.168.0.{number}", backend_data or vtep(number))
        self.client = EtcdClient(options)
        self.registry = Registry(self.client, PREFIX)
        self.lost: list[LeaseLost] = []
        self.keeper = LeaseKeeper(self.registry, self.lost.append, ttl=ttl, margin=margin, retry=retry)
        self.snapshot: Snapshot | None = None
        self.read_at: dict[Network, float] = {}
        self.passes = 0
        self.peers: set[Network] = set()
        self.removed: list[Network] = []
        self._guard: SnapshotGuard | None = None
        self._recheck: float | None = None
        self._wake = threading.Event()
        self._stopping = False
        self.watch = Watch(self.client, self.registry.watched, self._wake.set)
        self._loop = threading.Thread(target=self._passes, daemon=True)

    def acquire(self, *previous: str) -> Lease:
        return self.keeper.acquire(self.config, self.claim, [ip_network(text) for text in previous])

    def start(self, *previous: str) -> None:
        self.acquire(*previous)
        self.keeper.start()
        self.watch.start()
        self._loop.start()

    def stop(self) -> None:
        self._stopping = True
        self.watch.stop()
        self.client.close()
        self.keeper.stop()
        self._wake.set()
        self._loop.join()

    def sees(self, *subnets: Network) -> bool:
        """Whether the last snapshot holds exactly these leases."""
        return self.snapshot is not None and subnets_of(self.snapshot) == {*subnets}

    def _passes(self) -> None:
        while True:
            self._wake.wait(self._recheck)
            self._wake.clear()
            if self._stopping:
                return
            try:
                self.snapshot = self.registry.snapshot()
            except EtcdError:
                continue
            now = time.monotonic()
            for subnet in subnets_of(self.snapshot):
                self.read_at.setdefault(subnet, now)
            self._program(self.snapshot)
            self.passes += 1
            self.keeper.observe(self.snapshot)

    def _program(self, snapshot: Snapshot) -> None:
        """Keep `peers` as a data path would be kept: removals only as the guard allows them."""
        own = self.keeper.lease
        if self._guard is None:
            self._guard = SnapshotGuard(GRACE, (), own.create_revision, continuous=self.keeper.reused)
        subnets = subnets_of(snapshot) - {*own.subnets}
        own_created = next((it.create_revision for it in snapshot.leases if it.key == own.key), 0)
        verdict = self._guard.judge(
            Seen(snapshot.cluster_id, snapshot.revision, subnets, own_created), time.monotonic()
        )
        self.peers |= subnets
        if verdict.may_remove:
            self.removed += self.peers - subnets - verdict.keep
            self.peers &= subnets | verdict.keep
        self._recheck = verdict.wait or None


@contextmanager
def running(*nodes: LeaseNode) -> Iterator[None]:
    """Run nodes for the length of a test."""
    for node in nodes:
        node.start()
    try:
        yield
    finally:
        for node in nodes:
            node.stop()
