"""The hooks of this node that packets meet which our programs would carry past them.

On the kernel's way (net/bridge, net/ipv4/ip_forward.c, drivers/net/vxlan):

    pod -> veth -> bridge -> PREROUTING, FORWARD, POSTROUTING -> flannel.1 -> OUTPUT, POSTROUTING -> uplink
    uplink -> PREROUTING, INPUT -> flannel.1 -> PREROUTING, FORWARD, POSTROUTING -> bridge -> veth -> pod

Without a tunnel, the uplink is what flannel.1 is here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from flannel_ebpf.desired.proof.packets import (
    STATE_ESTABLISHED,
    STATE_INVALID,
    STATE_NEW,
    STATE_RELATED,
    UDP,
    Field,
    Packets,
    Version,
    carried,
)
from flannel_ebpf.desired.proof.ranges import Ranges, both, either, exactly, names, without
from flannel_ebpf.desired.proof.rules import BaseChain, Hook

CONNTRACK = -200
"""NF_IP_PRI_CONNTRACK: base chains of PREROUTING and OUTPUT up to here run before a packet has a state."""

_STATES = (STATE_INVALID, STATE_ESTABLISHED, STATE_RELATED, STATE_NEW)
_STATES_OF_UDP = (STATE_ESTABLISHED, STATE_RELATED, STATE_NEW)
"""INVALID are datagrams with a wrong length or checksum, of which no tunnel is made."""
_NO_DEVICE = names([""])
_BELOW_IP = {
    Hook.INGRESS,
    Hook.EGRESS,
    Hook.BRIDGE_PREROUTING,
    Hook.BRIDGE_INPUT,
    Hook.BRIDGE_FORWARD,
    Hook.BRIDGE_OUTPUT,
    Hook.BRIDGE_POSTROUTING,
}


@dataclass(frozen=True, slots=True)
class Tunnel:
    """The outer packets: own and peers' public addresses, the tunnel's UDP port, the uplink's name."""

    own: Ranges
    peers: Ranges
    port: int
    uplink: str


@dataclass(frozen=True, slots=True)
class Facts:
    """What the proof must know of this node, for one IP version.

    `pods` are the addresses of its subnet, `others` those of the rest of the network. `gateways` are the
    devices through which pods' packets come to the IP layer (bridges, veths with a host route), `ports` the
    host sides of all pods' veths, `overlays` the devices of the way to peers. `kinds` are addresses by
    routing type: "local", "broadcast", "multicast". `mark` are the values that skb->mark may have before
    any rule. With `invalid_is_nobody`, no packet of a free pod that the kernel may yet carry is in
    conntrack's state INVALID. Without `stateless` no pod is free, and the question is only for whom rules
    judge packets one by one.
    """

    version: Version
    pods: Ranges
    others: Ranges
    gateways: frozenset[str]
    ports: frozenset[str]
    overlays: frozenset[str]
    tunnel: Tunnel | None
    kinds: Mapping[str, Ranges]
    mark: Ranges = ((0, 0),)
    invalid_is_nobody: bool = True
    stateless: bool = True


class Passage(NamedTuple):
    """Packets at a hook. `pod` is the field with the local pod's address, None: the packet is any pod's."""

    hook: Hook
    packets: Packets
    pod: Field | None


def passages(facts: Facts) -> Iterator[Passage]:
    """Yield every hook that carried packets would have met, in their order."""
    own = facts.kinds.get("local", ())
    pods, others = without(facts.pods, own), without(facts.others, own)
    states = _STATES
    yield from _from_pods(facts, carried(facts.version, pods, others, states, facts.mark))
    yield from _to_pods(facts, carried(facts.version, others, pods, states, facts.mark))
    if facts.tunnel:
        yield from _outer(facts.tunnel, carried(facts.version, (), (), _STATES_OF_UDP, facts.mark))


def _from_pods(facts: Facts, packets: Packets) -> Iterator[Passage]:
    ports, gateways, overlays = names(facts.ports), names(facts.gateways), names(facts.overlays)
    bridges = names(facts.gateways - facts.ports)
    for hook, iif, oif in (
        (Hook.INGRESS, ports, _NO_DEVICE),
        (Hook.BRIDGE_PREROUTING, ports, _NO_DEVICE),
        (Hook.BRIDGE_INPUT, ports, _NO_DEVICE),
        (Hook.INGRESS, bridges, _NO_DEVICE),
        (Hook.PREROUTING, gateways, _NO_DEVICE),
        (Hook.FORWARD, gateways, overlays),
        (
            Hook.POSTROUTING,
            either(gateways, _NO_DEVICE),
            overlays,
        ),  # Linux 5.6 was the first to tell iif here
        (Hook.EGRESS, _NO_DEVICE, overlays),
    ):
        yield Passage(hook, _at(packets, iif, oif), Field.SADDR)


def _to_pods(facts: Facts, packets: Packets) -> Iterator[Passage]:
    ports, gateways, overlays = names(facts.ports), names(facts.gateways), names(facts.overlays)
    bridges = names(facts.gateways - facts.ports)
    for hook, iif, oif in (
        (Hook.INGRESS, overlays, _NO_DEVICE),
        (Hook.PREROUTING, overlays, _NO_DEVICE),
        (Hook.FORWARD, overlays, gateways),
        (Hook.POSTROUTING, either(overlays, _NO_DEVICE), gateways),
        (Hook.EGRESS, _NO_DEVICE, bridges),
        (Hook.BRIDGE_OUTPUT, _NO_DEVICE, ports),
        (Hook.BRIDGE_POSTROUTING, _NO_DEVICE, ports),
        (Hook.EGRESS, _NO_DEVICE, ports),
    ):
        yield Passage(hook, _at(packets, iif, oif), Field.DADDR)


def _outer(tunnel: Tunnel, packets: Packets) -> Iterator[Passage]:
    uplink = names([tunnel.uplink])
    packets = packets.having(Field.PROTOCOL, exactly(UDP)).having(Field.DPORT, exactly(tunnel.port))
    ways = {
        Field.IIF: (tunnel.peers, tunnel.own, (Hook.INGRESS, Hook.PREROUTING, Hook.INPUT)),
        Field.OIF: (tunnel.own, tunnel.peers, (Hook.OUTPUT, Hook.POSTROUTING, Hook.EGRESS)),
    }
    for device, (saddr, daddr, hooks) in ways.items():
        way = packets.having(Field.SADDR, saddr).having(Field.DADDR, daddr).having(device, uplink)
        for hook in hooks:
            yield Passage(hook, way, None)


def _at(packets: Packets, iif: Ranges, oif: Ranges) -> Packets:
    return packets.having(Field.IIF, iif).having(Field.OIF, oif)


def meeting(passage: Passage, base: BaseChain) -> Packets | None:
    """Return the packets as this base chain sees them, None when it does not."""
    packets = passage.packets
    if base.hook != passage.hook:
        return None
    if base.devices is not None:
        field = Field.IIF if base.hook == Hook.INGRESS else Field.OIF
        packets = packets.having(field, both(packets[field] or (), base.devices))
    if any(packets[field] == () for field in (Field.SADDR, Field.DADDR, Field.IIF, Field.OIF)):
        return None
    if base.hook in _BELOW_IP:
        return packets.having(Field.STATE, None).having(Field.PACKET_TYPE, None)
    if base.hook in {Hook.PREROUTING, Hook.OUTPUT} and base.priority <= CONNTRACK:
        return packets.having(Field.STATE, None)
    return packets
