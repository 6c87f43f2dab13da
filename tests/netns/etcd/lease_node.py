"""The lease side of a node alone, made of the daemon's own parts with the daemon's own defaults."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network, ip_network
from typing import Any

from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.errors import LeaseLost
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Claim, Lease
from flannel_ebpf.base.options import Options
from flannel_ebpf.cli import main
from flannel_ebpf.leases.etcd import EtcdOptions, Registry
from flannel_ebpf.leases.etcd.source import EtcdSource
from flannel_ebpf.leases.lease_keeper import DAY
from flannel_ebpf.leases.snapshot import View
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually
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


def subnets_of(view: View) -> set[Network]:
    return {subnet for lease in view.leases for subnet in lease.subnets}


def operate(etcd: EtcdCluster, command: str, *words: str) -> int:
    """Run a command as an operator would and return its exit status."""
    return main([command, *words, f"--etcd-endpoints={','.join(etcd.endpoints)}", f"--etcd-prefix={PREFIX}"])


def value(etcd: EtcdCluster, key: str = KEY) -> str:
    return etcd.ctl("get", "--print-value-only", key).strip()


def ttl(etcd: EtcdCluster, lease: Lease) -> int:
    """Return the seconds that etcd will still keep the lease's key."""
    return int(json.loads(etcd.ctl("lease", "timetolive", f"{lease.etcd_lease:x}", "-w=json"))["ttl"])


class LeaseNode:
    """Node number `number` with public IP 192.168.0.<number> and leases of `ttl` seconds.

    `read_at` says when each subnet came into the view, `removed` which ones left it again.
    """

    def __init__(
        self,
        etcd: EtcdOptions,
        number: int,
        *,
        config: NetworkConfig = CONFIG,
        public_ip: str = "",
        backend_data: Any = None,
        ttl: int = DAY,
    ) -> None:
        self.number, self.config = number, config
        self.claim = claim(public_ip or f"192.168.0.{number}", backend_data or vtep(number))
        self.lost: list[LeaseLost] = []
        self.source = EtcdSource(Options(etcd=etcd, lease_ttl=ttl, wipe_grace=GRACE), self.lost.append)
        self.keeper, self.registry = self.source._keeper, self.source._registry
        self.read_at: dict[Network, float] = {}
        self.removed: list[Network] = []
        self._seen: set[Network] = set()

    def acquire(self, *previous: str) -> Lease:
        return self.source.acquire(self.config, self.claim, [ip_network(text) for text in previous])

    def start(self, *previous: str) -> None:
        """Take a lease, follow the others' and return when they have been read once."""
        self.acquire(*previous)
        self.source.follow((), self._note)
        eventually(lambda: self.view.leases, f"node {self.number} has read the leases")

    def stop(self) -> None:
        self.source.interrupt()
        self.source.close()

    def leave(self) -> None:
        """Give the lease back, as `down --release` does."""
        self.registry.delete(self.keeper.lease)

    @property
    def view(self) -> View:
        return self.source.view

    @property
    def peers(self) -> set[Network]:
        """The other nodes' subnets in the view."""
        return subnets_of(self.view) - {*self.keeper.lease.subnets}

    def sees(self, *subnets: Network) -> bool:
        """Whether the view holds exactly these leases."""
        return subnets_of(self.view) == {*subnets}

    def _note(self) -> None:
        """Take down what is new in the view; called on the cluster's thread after each news."""
        subnets, now = self.peers, time.monotonic()
        for subnet in subnets - self._seen:
            self.read_at.setdefault(subnet, now)
        self.removed += self._seen - subnets
        self._seen = subnets


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
