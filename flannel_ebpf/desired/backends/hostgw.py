"""The host-gw backend (flannel pkg/backend/hostgw): one plain route per peer on the uplink, no device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.family import Address, Family
from flannel_ebpf.base.model import LeasePart, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends.peer import Peer, Stack, path_to, remote
from flannel_ebpf.desired.objects import Object, Route

BACKEND_TYPE = "host-gw"


def overlay_name(config: NetworkConfig, family: Family) -> str:
    """Return "": packets leave by the uplink as they are."""
    return ""


def mtu(config: NetworkConfig, uplink: Uplink) -> int:
    """Return the uplink's MTU: nothing is added to a packet."""
    return uplink.mtu


def obstacle(config: NetworkConfig, uplink: Uplink) -> str:
    """Return "": what the uplink carries, it carries for pods too."""
    return ""


def lease_data(config: NetworkConfig, mac: Mac | None) -> tuple[str, Any]:
    """Return `host-gw`; flanneld writes no BackendData."""
    return BACKEND_TYPE, None


def peers(
    stack: Stack, parts: Sequence[LeasePart], paths: Mapping[Address, PathFacts]
) -> tuple[list[Peer], list[Skipped]]:
    """Return the host-gw leases of other nodes.

    A peer that is not on the uplink's link stays a peer: its route fails, is reported and tried again,
    because the link may come.
    """
    found: list[Peer] = []
    skipped: list[Skipped] = []
    for part in remote(stack, parts):
        if part.backend_type != BACKEND_TYPE:
            skipped.append(Skipped(str(part.subnet), f"BackendType {part.backend_type!r} is not host-gw"))
            continue
        path = path_to(stack, part, paths)
        found.append(Peer(part.subnet, part.public_ip, Mode.DIRECT, path.mtu, path.on_link))
    return found, skipped


def objects(stack: Stack, peers: Sequence[Peer]) -> list[Object]:
    """Return one route per peer: `subnet via PublicIP dev uplink`."""
    return [Route(peer.subnet, peer.public_ip, stack.uplink.name) for peer in peers]
