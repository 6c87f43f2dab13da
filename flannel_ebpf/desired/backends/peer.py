"""A peer, and the facts about this node that decide how it is reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flannel_ebpf.base.config import NetworkConfig, Pool
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import LeasePart, Mac, PathFacts, Uplink
from flannel_ebpf.contract.enums import Mode


@dataclass(frozen=True, slots=True)
class Stack:
    """This node in one family of one network.

    A node of a dual-stack network has two, which share the interface and know nothing of each other: whatever
    is done for a family is done once for each. `vtep_mac` is our device's address, None where there is none.
    """

    config: NetworkConfig
    pool: Pool
    uplink: Uplink
    public_ip: Address
    subnet: Network
    vtep_mac: Mac | None = None

    @property
    def family(self) -> Family:
        """Which family it is."""
        return self.pool.family

    @property
    def network(self) -> Network:
        """The network of this family, of which `subnet` is a part."""
        return self.pool.network


@dataclass(frozen=True, slots=True)
class Node:
    """This node in one network: a stack for each of its families, IPv4 first."""

    stacks: tuple[Stack, ...]

    @property
    def config(self) -> NetworkConfig:
        """The network's config."""
        return self.stacks[0].config

    @property
    def uplink(self) -> Uplink:
        """The interface that all stacks share, with the first one's address."""
        return self.stacks[0].uplink

    @property
    def public_ips(self) -> tuple[Address, ...]:
        """The address of each family that peers use."""
        return tuple(stack.public_ip for stack in self.stacks)

    @property
    def subnets(self) -> tuple[Network, ...]:
        """The subnet of each family."""
        return tuple(stack.subnet for stack in self.stacks)

    def stack(self, family: Family) -> Stack | None:
        """Return the stack of one family, None when the network has none."""
        return next((stack for stack in self.stacks if stack.family == family), None)


@dataclass(frozen=True, slots=True)
class Peer:
    """A remote subnet and the way there.

    `mtu` is the largest outer packet towards `public_ip`; `on_link` is true when that is a neighbour on the
    uplink, so that no router lies between. `bpf`: programs take the udp format there, says its lease.
    """

    subnet: Network
    public_ip: Address
    mode: Mode
    mtu: int
    on_link: bool
    vtep_mac: Mac | None = None
    bpf: bool = False


def path_to(stack: Stack, part: LeasePart, paths: Mapping[Address, PathFacts]) -> PathFacts:
    """Return what routing says of the way to a peer; when it says nothing, the uplink's MTU and a router."""
    return paths.get(part.public_ip) or PathFacts(mtu=stack.uplink.mtu, on_link=False)


def remote(stack: Stack, parts: Iterable[LeasePart]) -> list[LeasePart]:
    """Return what other nodes' leases say.

    A second lease under our own public address (left from an earlier subnet) is not remote either: the
    tunnel to it would end on this host.
    """
    return [part for part in parts if part.subnet != stack.subnet and part.public_ip != stack.public_ip]
