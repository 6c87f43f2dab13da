"""What the proof must know of this node: addresses, devices, and how pods' packets come and go."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from flannel_ebpf.base.config import HostGwConfig
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import PodPort
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends import Peer, Stack, backend_of
from flannel_ebpf.desired.proof.passages import Facts, Tunnel
from flannel_ebpf.desired.proof.ranges import Ranges, exactly, of, of_network, without
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.netlink.routes import read_local_table
from flannel_ebpf.kernel.seen import Seen

_RTN = {2: "local", 3: "broadcast"}
_MULTICAST = {Family.V4: ip_network("224.0.0.0/4"), Family.V6: ip_network("ff00::/8")}
_LOOSE = "net/netfilter/nf_conntrack_tcp_loose"


def facts_of(
    stack: Stack, peers: Sequence[Peer], ports: Sequence[PodPort], seen: Seen, *, stateless: bool
) -> Facts:
    """Return the facts of this node in one family. Raises KernelError."""
    pods = of_network(stack.subnet)
    return Facts(
        version=4 if stack.family == Family.V4 else 6,
        pods=pods,
        others=without(of_network(stack.network), pods),
        gateways=frozenset(_gateways(ports, seen)),
        ports=frozenset(port.name for port in ports),
        overlays=_overlays(stack, peers),
        tunnel=_tunnel(stack, peers),
        kinds=_kinds(stack.family, seen),
        # Some of what free pods send is the kernel's in any case: what is too large, or in pieces, and, where
        # there is a tunnel, whatever comes when the outer leg is looked at anew. That may be a SYN-ACK whose
        # SYN conntrack has not seen: INVALID. Without `loose` every packet in mid-connection is.
        invalid_is_nobody=isinstance(stack.config.backend, HostGwConfig) and sysctl.read(_LOOSE) != "0",
        stateless=stateless,
    )


def _gateways(ports: Sequence[PodPort], seen: Seen) -> list[str]:
    indexes = {port.bridge or port.ifindex for port in ports}
    return [link.name for index in indexes if (link := seen.links.get(index))]


def _overlays(stack: Stack, peers: Sequence[Peer]) -> frozenset[str]:
    overlay = backend_of(stack.config).overlay_name(stack.config, stack.family)
    direct = not overlay or any(peer.mode == Mode.DIRECT for peer in peers)
    return frozenset(name for name in (overlay, stack.uplink.name if direct else "") if name)


def _tunnel(stack: Stack, peers: Sequence[Peer]) -> Tunnel | None:
    backend = stack.config.backend
    if isinstance(backend, HostGwConfig):
        return None
    others = exactly(*(int(peer.public_ip) for peer in peers))
    return Tunnel(exactly(int(stack.public_ip)), others, backend.port, stack.uplink.name)


def _kinds(family: Family, seen: Seen) -> dict[str, Ranges]:
    pairs: dict[str, list[tuple[int, int]]] = {name: [] for name in _RTN.values()}
    for kind, (address, length) in read_local_table(seen.netlink, family):
        if kind in _RTN:
            pairs[_RTN[kind]].append((address, address + (1 << (family.bits - length)) - 1))
    return {name: of(found) for name, found in pairs.items()} | {"multicast": of_network(_MULTICAST[family])}
