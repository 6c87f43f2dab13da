"""What flannel keeps in node objects: annotations and podCIDRs (flannel pkg/subnet/kube).

A node's subnets are `spec.podCIDRs`; everything else of its lease stands in annotations below a prefix, in
the same JSON texts as in etcd. A part that cannot be read carries its flaw, and leaves the node's other
family alone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import Any

from flannel_ebpf.base.config import Pool
from flannel_ebpf.base.errors import ConfigError, InvalidLease, LeaseError
from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.base.model import Claim, Lease, LeasePart

MANAGED = "kube-subnet-manager"
"""Set to "true" by every flanneld in Kubernetes mode; nodes without it have no lease."""
BACKEND_TYPE = "backend-type"
PUBLIC_IP = {Family.V4: "public-ip", Family.V6: "public-ipv6"}
BACKEND_DATA = {Family.V4: "backend-data", Family.V6: "backend-v6-data"}
OVERWRITE = {family: f"{name}-overwrite" for family, name in PUBLIC_IP.items()}
"""Set by an operator: what peers are told in place of the node's own address."""
NODE_PUBLIC_IP = {family: f"node-{name}" for family, name in PUBLIC_IP.items()}
"""Set by an operator: what counts as the node's own address, like --public-ip."""

_PREFIX = re.compile(r"(?:[a-z0-9_-]+\.)+[a-z0-9_-]+/(?:[a-z0-9_-]+-)?")


def annotation_prefix(text: str) -> str:
    """Return what every annotation starts with, for `--kube-annotation-prefix`; raises ConfigError."""
    prefix = text if "/" in text else f"{text}/"
    if not prefix.endswith(("/", "-")):
        prefix += "-"
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            "--kube-annotation-prefix", text, "a domain such as flannel.alpha.coreos.com, or domain/word"
        )
    return prefix


@dataclass(frozen=True, slots=True)
class KubeNode:
    """What counts of one node object. `notes` are its annotations below the prefix, named without it.

    `uid` tells a node from a later one of the same name.
    """

    name: str
    uid: str
    pod_cidrs: tuple[str, ...]
    notes: Mapping[str, str]


def read_node(node: Mapping[str, Any], prefix: str) -> KubeNode:
    """Return what counts of a node object as the API server sends it."""
    metadata, spec = node["metadata"], node.get("spec") or {}
    cidrs = spec.get("podCIDRs") or ([spec["podCIDR"]] if spec.get("podCIDR") else [])
    notes = {
        key.removeprefix(prefix): value
        for key, value in (metadata.get("annotations") or {}).items()
        if key.startswith(prefix)
    }
    return KubeNode(metadata["name"], metadata["uid"], tuple(cidrs), notes)


def lease_of(node: KubeNode, families: Collection[Family]) -> Lease | None:
    """Return the lease that a node object carries, None when no flannel runs there.

    It has one part for each of `families` that the node has a podCIDR of. Raises InvalidLease when it has
    none, or several of one.
    """
    if node.notes.get(MANAGED) != "true":
        return None
    subnets = _subnets(node)
    parts = [_part(node, family, subnets[family]) for family in sorted(subnets.keys() & set(families))]
    if not parts:
        wanted = " or ".join(map(str, families))
        raise InvalidLease(f"it has no {wanted} podCIDR")
    return Lease(tuple(parts), key=f"node {node.name}", create_revision=_number(node.uid))


def own_subnets(node: KubeNode, pools: Iterable[Pool]) -> tuple[Network, ...]:
    """Return our own node's subnet of each family of the network; raises LeaseError."""
    try:
        subnets = _subnets(node)
    except InvalidLease as error:
        raise LeaseError(f"node {node.name}: {error}") from None
    if not subnets:
        raise LeaseError(
            f"node {node.name} has no podCIDR yet: kube-controller-manager gives one with "
            "--allocate-node-cidrs and --cluster-cidr (kubeadm init --pod-network-cidr)"
        )
    return tuple(_own_subnet(node, pool, subnets.get(pool.family)) for pool in pools)


def notes_of(claim: Claim, node: KubeNode) -> dict[str, str]:
    """Return the annotations that our own lease consists of, as flanneld writes them; raises ConfigError."""
    notes = {MANAGED: "true", BACKEND_TYPE: claim.backend_type}
    for endpoint in claim.endpoints:
        family = family_of(endpoint.public_ip)
        public_ip = _told_address(node, OVERWRITE, family) or endpoint.public_ip
        notes[PUBLIC_IP[family]] = str(public_ip)
        notes[BACKEND_DATA[family]] = json.dumps(endpoint.backend_data, separators=(",", ":"))
    return notes


def node_addresses(node: KubeNode) -> dict[Family, Address]:
    """Return the addresses that the operator says this node has; raises ConfigError."""
    told = {family: _told_address(node, NODE_PUBLIC_IP, family) for family in Family}
    return {family: address for family, address in told.items() if address}


def _told_address(node: KubeNode, notes: Mapping[Family, str], family: Family) -> Address | None:
    """Return the address in an operator's annotation, None without it; raises ConfigError."""
    text = node.notes.get(notes[family])
    if not text:
        return None
    try:
        return family.address(text)
    except ValueError:
        source = f"node {node.name}, annotation {notes[family]}"
        raise ConfigError(source, text, f"an {family} address") from None


def _own_subnet(node: KubeNode, pool: Pool, subnet: Network | None) -> Network:
    if subnet is None:
        raise LeaseError(
            f"node {node.name} has no {pool.family} podCIDR, but {', '.join(node.pod_cidrs)}: the network "
            f"config enables {pool.family}"
        )
    inside = subnet.prefixlen >= pool.network.prefixlen and subnet.network_address in pool.network
    if not inside:
        raise LeaseError(
            f"podCIDR {subnet} of node {node.name} is outside the network {pool.network} of the network "
            "config: that should be kube-controller-manager's --cluster-cidr"
        )
    return subnet


def _subnets(node: KubeNode) -> dict[Family, Network]:
    found: dict[Family, Network] = {}
    for text in node.pod_cidrs:
        try:
            subnet = ip_network(text, strict=False)
        except ValueError:
            raise InvalidLease(f"podCIDR {text!r} is no subnet") from None
        if found.setdefault(family_of(subnet), subnet) != subnet:
            raise InvalidLease(f"two podCIDRs of one family: {', '.join(node.pod_cidrs)}")
    return found


def _part(node: KubeNode, family: Family, subnet: Network) -> LeasePart:
    backend_type = node.notes.get(BACKEND_TYPE, "")
    ip, data = node.notes.get(PUBLIC_IP[family]), node.notes.get(BACKEND_DATA[family])
    flaw, public_ip, backend_data = "", family.unspecified, None
    try:
        public_ip = family.address(ip or "")
    except ValueError:
        flaw = f"annotation {PUBLIC_IP[family]} of node {node.name} is {ip!r}: an {family} address is needed"
    try:
        backend_data = json.loads(data) if data else None
    except ValueError:
        flaw = flaw or f"annotation {BACKEND_DATA[family]} of node {node.name} is {data!r}: JSON is needed"
    return LeasePart(subnet, public_ip, backend_type, backend_data, flaw)


def _number(uid: str) -> int:
    """Return a node's uid as a number, so that it can be compared where etcd has revisions."""
    try:
        return int(uid.replace("-", ""), 16)
    except ValueError:
        return 0
