"""Kubernetes as the source of leases: flannel's `--kube-subnet-mgr`.

The config is a file (a ConfigMap that is mounted), our subnet is our node's podCIDR, and what etcd holds
otherwise stands in annotations of the node objects.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.config_keys import unknown_keys
from flannel_ebpf.base.errors import ConfigError, InvalidLease, KubeUnavailable, LeaseLost
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import Claim, Lease, LeasePart, Skipped
from flannel_ebpf.base.options import KubeOptions
from flannel_ebpf.leases.cluster import Cluster
from flannel_ebpf.leases.kube.access import find_access
from flannel_ebpf.leases.kube.client import KubeClient
from flannel_ebpf.leases.kube.keeper import NodeKeeper
from flannel_ebpf.leases.kube.mirror import NODES, PAGE, NodeMirror
from flannel_ebpf.leases.kube.nodes import KubeNode, annotation_prefix, lease_of, node_addresses, read_node
from flannel_ebpf.leases.servers import Servers
from flannel_ebpf.leases.snapshot import Snapshot, View
from flannel_ebpf.leases.snapshot_guard import SnapshotGuard

log = logging.getLogger(__name__)

PATIENCE = 600.0
"""Seconds after which CONT_WHEN_CACHE_NOT_READY=true lets a node go on without having seen the others."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One node as the mirror holds it: `lease` is None when it has none, `why` says what is wrong with it."""

    node: KubeNode
    lease: Lease | None
    why: str = ""


class KubeSource:
    """A LeaseSource; see flannel_ebpf.leases.source for what its methods promise.

    `environment` names this node and may name the API server. Raises ConfigError.
    """

    def __init__(
        self,
        options: KubeOptions,
        environment: Mapping[str, str],
        grace: float,
        on_lost: Callable[[LeaseLost], None],
    ) -> None:
        self._options = options
        self._environment = environment
        self._grace = grace
        self._prefix = annotation_prefix(options.kube_annotation_prefix)
        self._client = KubeClient(find_access(options, environment))
        self._servers = Servers([urlsplit(self._client.server).hostname or ""])
        self._keeper = NodeKeeper(self._client, self._prefix, on_lost)
        self._name = ""
        self._node: KubeNode | None = None
        self._families = tuple(Family)
        self._mirror: NodeMirror[_Entry] | None = None
        self._cluster: Cluster | None = None
        self._followed_at = 0.0
        self._own: _Entry | None = None
        self._good: dict[Network, LeasePart] = {}

    @property
    def where(self) -> str:
        """What is asked, for people."""
        return f"the API server at {self._client.server}"

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
        """Whether our node had a lease when this daemon started."""
        return self._keeper.reused

    @property
    def view(self) -> View:
        """The leases that count."""
        view = self._cluster.view if self._cluster else View()
        if view.leases or self._environment.get("CONT_WHEN_CACHE_NOT_READY") != "true":
            return view
        if time.monotonic() < self._followed_at + PATIENCE:
            return view
        return View((self.lease,), doubt="the other nodes are not known yet")

    def network_config(self) -> NetworkConfig:
        """Read the network config from its file."""
        path = self._options.net_config_path
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            expected = f"the network config, as in flannel's ConfigMap kube-flannel-cfg ({error.strerror})"
            raise ConfigError("--net-config-path", str(path), expected) from None
        config = parse_network_config(text, str(path))
        for key in unknown_keys(text):
            log.warning("%s: key %s is none of flannel's and is ignored", str(path), key)
        return config

    def addresses(self) -> dict[Family, Address]:
        """Return what an operator wrote on our node: annotations node-public-ip and node-public-ipv6."""
        self._node = self._look()
        return node_addresses(self._node)

    def former(self, addresses: Collection[Address]) -> tuple[LeasePart, ...]:
        """Return what our node's annotations say, whatever the addresses: the node is known by its name."""
        self._node = self._node or self._look()
        try:
            lease = lease_of(self._node, tuple(Family))
        except InvalidLease:
            return ()  # acquire says what is wrong
        return lease.parts if lease else ()

    def snapshot(self) -> Snapshot:
        """List all nodes now."""
        entries: dict[str, _Entry] = {}
        with self._client.converse() as talk:
            talk.list(
                NODES, {"limit": PAGE}, lambda it: entries.update({it["metadata"]["name"]: self._entry(it)})
            )
        return self._leases_of(entries)

    def seconds_left(self, lease: Lease) -> float | None:
        """Return None: a lease lives as long as its node object."""
        return None

    def release(self) -> None:
        """Take our annotations off our node: the others forget it. Raises KubeError."""
        self._keeper.withdraw(self._look())

    def acquire(self, config: NetworkConfig, claim: Claim, previous: Collection[Network]) -> Lease:
        """Publish `claim` on our node; its podCIDRs are the lease's subnets, whatever there was before."""
        node, self._node = self._node or self._look(), None  # another try looks again
        self._families = tuple(pool.family for pool in config.pools)
        return self._keeper.acquire(config.pools, claim, node)

    def update(self, claim: Claim) -> None:
        """Publish something else."""
        self._keeper.update(claim)

    def follow(self, programmed: Iterable[Network], on_change: Callable[[], None]) -> None:
        """Follow the nodes."""
        self._followed_at = time.monotonic()
        self._servers.resolve()
        guard = SnapshotGuard(
            self._grace, programmed, self.lease.create_revision, continuous=self._keeper.reused
        )
        self._cluster = Cluster(self._read, lambda: self.lease, guard, on_change)
        self._mirror = NodeMirror(self._client, self._entry, self._on_nodes)
        self._cluster.start()
        self._keeper.start()
        self._mirror.start()

    def ready(self) -> None:
        """Write the node condition NetworkUnavailable=False."""
        if self._options.set_node_network_unavailable:
            self._keeper.ready()

    def interrupt(self) -> None:
        """End all requests."""
        self._client.close()

    def close(self) -> None:
        """End all threads; the annotations stay."""
        self.interrupt()
        for part in (self._mirror, self._cluster, self._keeper):
            if part:
                part.stop()

    def _find_name(self) -> str:
        """Return our node's name: the environment has it, or the pod that we are."""
        name = self._environment.get("NODE_NAME")
        if name:
            return name
        pod, namespace = (self._environment.get(key) for key in ("POD_NAME", "POD_NAMESPACE"))
        if not pod or not namespace:
            raise ConfigError(
                "NODE_NAME", None, "this node's name, or POD_NAME and POD_NAMESPACE of the pod that asks"
            )
        found = self._client.get(f"/api/v1/namespaces/{namespace}/pods/{pod}")
        name = (found.get("spec") or {}).get("nodeName")
        if not name:
            raise ConfigError("POD_NAME", pod, "the name of a pod that runs on a node")
        return str(name)

    def _look(self) -> KubeNode:
        self._name = self._name or self._find_name()
        return self._keeper.look(self._name)

    def _entry(self, found: Mapping[str, Any]) -> _Entry:
        """Return what we know of a node; the very same while nothing changes but what kubelets write."""
        node = read_node(found, self._prefix)
        before = self._mirror.node(node.name) if self._mirror else None
        if before and before.node == node:
            return before
        try:
            return _Entry(node, lease_of(node, self._families))
        except InvalidLease as error:
            return _Entry(node, None, str(error))

    def _on_nodes(self) -> None:
        if self._mirror and self._cluster:
            own = self._mirror.node(self._name)
            if own != self._own:
                self._own = own
                self._keeper.observe(own.node if own else None)
            self._cluster.wake()

    def _read(self, *, whole: bool) -> Snapshot:
        """Return what the mirror holds, which is always all that is known, `whole` or not."""
        entries = self._mirror.nodes() if self._mirror else None
        if entries is None:
            raise KubeUnavailable(f"{self.where} has not told all nodes yet")
        return self._leases_of(entries)

    def _leases_of(self, entries: Mapping[str, _Entry]) -> Snapshot:
        """Return the nodes' leases; of two nodes that have one subnet, ours or else the first by name."""
        leases: list[Lease] = []
        holders: dict[Network, Lease] = {}
        skipped = []
        for name in sorted(entries, key=lambda it: (it != self._name, it)):
            entry = entries[name]
            if entry.why:
                skipped.append(Skipped(f"node {name}", entry.why))
            if entry.lease is None:
                continue
            other = next((holders[net] for net in entry.lease.subnets if net in holders), None)
            if other:
                skipped.append(Skipped(f"node {name}", f"{other.key} has the same podCIDR"))
                continue
            lease, flaws = self._mended(entry.lease)
            skipped += flaws
            leases.append(lease)
            holders |= dict.fromkeys(lease.subnets, lease)
        self._good = {part.subnet: part for lease in leases for part in lease.parts if not part.flaw}
        return Snapshot(0, 0, tuple(leases), tuple(skipped))

    def _mended(self, lease: Lease) -> tuple[Lease, list[Skipped]]:
        """Return `lease` with the last good content where it cannot be read now, as flanneld keeps it."""
        flawed = [part for part in lease.parts if part.flaw and part.subnet in self._good]
        if not flawed:
            return lease, []
        parts = tuple(self._good.get(part.subnet, part) if part.flaw else part for part in lease.parts)
        told = [Skipped(str(part.subnet), f"{part.flaw}; what was known before stays") for part in flawed]
        return replace(lease, parts=parts), told
