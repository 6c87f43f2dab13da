"""Peers on demand: which of them have kernel objects of their own, and the one way to all others.

flannel gives every peer a route, a neighbour and an FDB entry on every node. In a very large network most
of them are never sent to. There the network has one route, by way of a station that does not exist:
bpf/any_peer.h sends what comes there to its peer, whichever it is. Peers that are sent to get objects of
their own within a second or two, because only by the kernel's own way is it seen how it lets tunnel packets
out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet

from flannel_ebpf.base.config import VxlanConfig
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.base.options import PeersChoice
from flannel_ebpf.contract import abi
from flannel_ebpf.contract.abi import ANY_PEER_MAC
from flannel_ebpf.contract.enums import Cap, Mode
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, Peer, Stack, vxlan
from flannel_ebpf.desired.objects import ANY_PEER_GATEWAY, Neighbour, Object, Route

FROM, BACK = 2000, 1500
"""`auto`: peers come on demand from so many on, and all have objects again below that."""
MOST = 1024
"""Peers that have objects of their own at once."""
MOST_NEW = 64
"""Peers that get them in one second."""
UNUSED, GIVE_WAY = 600.0, 60.0
"""Seconds without a packet after which a peer loses its objects, and after which it gives way to one more."""
NEEDED = Cap.REDIRECT_NEIGH | Cap.ENCAP_L2_ETH

Used = Mapping[Network, float]
"""Peers with objects of their own -> when they were last sent to, seconds of CLOCK_MONOTONIC."""


def obstacle(node: Node, caps: Cap, *, programs: bool) -> str:
    """Say why peers cannot come on demand on this node, "" when they can.

    `programs`: they are in use, and their maps have room for every peer.
    """
    backend = node.config.backend
    if not isinstance(backend, VxlanConfig):
        return f"{node.config.backend_type} has no device on which a program could tell its peers apart"
    if node.stack(Family.V4) is None:
        return "the programs carry IPv4 alone"
    if backend.gbp:
        return "with GBP the kernel itself must write every VXLAN header"
    if not programs:
        return "no programs are in use that know all of them"
    if NEEDED & ~caps:
        return "this kernel's programs cannot encapsulate all kinds of packets (Linux 5.13)"
    return ""


def wanted(choice: PeersChoice, peers: int, *, before: bool) -> bool:
    """Say whether peers should come on demand, where they can; `before`: they do now."""
    if choice == "auto":
        return peers >= (BACK if before else FROM)
    return choice == "on-demand"


def asked(used: Used, packets: Mapping[Network, int], now: float) -> Used:
    """Return the peers with objects when those are counted in that packets were sent to lately.

    The most asked for come first. Where there is no room, what was not sent to for a while gives way.
    """
    new = sorted((it for it in packets if it not in used), key=lambda it: -packets[it])[:MOST_NEW]
    over = len(used) + len(new) - MOST
    if over <= 0:
        return {**used, **dict.fromkeys(new, now)}
    oldest = sorted(used, key=lambda it: used[it])[:over]
    gone = {it for it in oldest if used[it] < now - GIVE_WAY}
    kept = {it: last for it, last in used.items() if it not in gone}
    return {**kept, **dict.fromkeys(new[: MOST - len(kept)], now)}


def still_used(used: Used, sent: Used, now: float) -> Used:
    """Return the peers with objects, those that were `sent` to counted in and those long unused left out."""
    latest = {**sent, **{it: max(last, sent.get(it, 0.0)) for it, last in used.items()}}
    kept = sorted((it for it, last in latest.items() if last > now - UNUSED), key=lambda it: -latest[it])
    return {it: latest[it] for it in kept[:MOST]}


def with_objects(node: Node, peers: Iterable[Peer], used: AbstractSet[Network]) -> list[Peer]:
    """Return the peers that have kernel objects: those in use, and those that BPF alone cannot reach."""
    stack = node.stack(Family.V4)
    if stack is None:
        return [*peers]
    whole = vxlan.mtu(node.config, stack.uplink) + vxlan.OVERHEAD[Family.V4]
    return [it for it in peers if it.subnet in used or not _waits(it, whole, stack.pool.subnet_len)]


def _waits(peer: Peer, whole: int, length: int) -> bool:
    """Say whether BPF alone can send a peer all that comes by the device, however large.

    fl_peers has no subnets of another length than most.
    """
    usual = family_of(peer.subnet) is Family.V4 and peer.subnet.prefixlen == length
    return usual and peer.mode == Mode.VXLAN and peer.mtu >= whole


def objects(node: Node, peers: Sequence[Peer], used: AbstractSet[Network] | None) -> list[Object]:
    """Return the kernel path's objects: of all peers, or with `used` of those, and the way to all others."""
    stack = node.stack(Family.V4)
    if used is None or stack is None:
        return backends.objects(node, peers)
    return [*backends.objects(node, with_objects(node, peers, used)), *way_in(stack)]


def leads_in(obj: Object) -> bool:
    """Say whether an object is part of the way to all peers without objects of their own."""
    match obj:
        case Neighbour(ip=gateway) | Route(gateway=gateway):
            return gateway == ANY_PEER_GATEWAY
        case _:
            return False


def for_all(overlay: str, peers: Mapping[Network, abi.Peer]) -> list[Object]:
    """Return the objects of every peer that the programs know: what shall stand when they are gone."""
    return [
        obj
        for subnet, peer in peers.items()
        if peer.vtep_mac != abi.NO_MAC
        for obj in vxlan.way_to(overlay, subnet, peer.vtep_mac, peer.public_ip)
    ]


def way_in(stack: Stack) -> list[Object]:
    """Return what leads to every peer that has no objects of its own."""
    name = backends.overlay_of(stack)
    return [
        Neighbour(name, ANY_PEER_GATEWAY, ANY_PEER_MAC),
        Route(stack.network, ANY_PEER_GATEWAY, name, onlink=True),
    ]
