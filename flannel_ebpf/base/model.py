"""What the control plane talks about: leases, peers and this node. Values only, no behaviour."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Address, Family, Network, family_of


@dataclass(frozen=True, order=True, slots=True)
class Mac:
    """An Ethernet address: six octets in wire order."""

    octets: bytes

    def __post_init__(self) -> None:
        if len(self.octets) != 6:
            raise ConfigError("Ethernet address", self.octets.hex(), "six octets")

    def __str__(self) -> str:
        return self.octets.hex(":")

    @classmethod
    def parse(cls, text: str) -> Mac:
        """Read what Go's ParseMAC accepts for 48 bits: colons, dashes, or dotted groups of four digits.

        Raises ConfigError when the text is anything else.
        """
        groups = text.split(":") if ":" in text else text.split("-") if "-" in text else text.split(".")
        width = 4 if "." in text else 2
        digits = "".join(groups)
        if len(groups) * width != 12 or any(len(group) != width for group in groups):
            raise ConfigError("Ethernet address", text, "six octets such as c6:d2:32:6f:8f:44")
        try:
            return cls(bytes.fromhex(digits))
        except ValueError as error:
            raise ConfigError("Ethernet address", text, "hexadecimal digits") from error


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How a node is reached in one family: public address, and BackendData as decoded JSON or None."""

    public_ip: Address
    backend_data: Any = None


@dataclass(frozen=True, slots=True)
class Claim:
    """What a node says of itself in its lease.

    `backend_type` is "" where flannel writes none (udp, alloc). `endpoints` has one for each family of the
    network, IPv4 first. The address in the first is the node's identity, as in flannel.
    """

    backend_type: str
    endpoints: tuple[Endpoint, ...]

    @property
    def public_ip(self) -> Address:
        """The address by which the cluster knows the node."""
        return self.endpoints[0].public_ip


@dataclass(frozen=True, slots=True)
class LeasePart:
    """What a lease says of one family: the subnet, and how the node that holds it is reached.

    A public address that is missing is the unspecified one, as in flannel. `flaw` says why this family of
    the node cannot be reached, whatever the network; "": nothing speaks against it.
    """

    subnet: Network
    public_ip: Address
    backend_type: str = ""
    backend_data: Any = None
    flaw: str = ""


@dataclass(frozen=True, slots=True)
class Lease:
    """One lease as etcd holds it (flannel pkg/lease: key plus JSON value).

    It has one part for each family that it names a subnet of, IPv4 first, and at least one. `extra` holds
    unknown fields, kept when we rewrite our own lease. `etcd_lease` is etcd's lease id, 0 for a reservation
    (a key without TTL). `key` is the whole etcd key.
    """

    parts: tuple[LeasePart, ...]
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    etcd_lease: int = 0
    mod_revision: int = 0
    create_revision: int = 0
    key: str = ""

    @classmethod
    def of(cls, subnets: Iterable[Network], claim: Claim) -> Lease:
        """Return the lease of `subnets` that carries `claim`: one subnet for each of its endpoints."""
        pairs = zip(subnets, claim.endpoints, strict=True)
        return cls(
            tuple(LeasePart(net, it.public_ip, claim.backend_type, it.backend_data) for net, it in pairs)
        )

    @property
    def claim(self) -> Claim:
        """What the node that holds it says of itself."""
        endpoints = (Endpoint(part.public_ip, part.backend_data) for part in self.parts)
        return Claim(self.parts[0].backend_type, tuple(endpoints))

    def with_claim(self, claim: Claim) -> Lease:
        """Return the same lease with another content."""
        return replace(self, parts=Lease.of(self.subnets, claim).parts)

    @property
    def public_ip(self) -> Address:
        """The address by which the cluster knows the node that holds it."""
        return self.parts[0].public_ip

    @property
    def subnets(self) -> tuple[Network, ...]:
        """The subnet of each family."""
        return tuple(part.subnet for part in self.parts)

    def part(self, family: Family) -> LeasePart | None:
        """Return what it says of one family, None when it names no subnet of it."""
        for part in self.parts:
            if part.subnet.version == family:
                return part
        return None

    def held_by(self, node: Claim) -> bool:
        """Say whether it is that node's lease: the first family that both have tells, as in flannel."""
        for endpoint in node.endpoints:
            part = self.part(family_of(endpoint.public_ip))
            if part:
                return part.public_ip == endpoint.public_ip
        return False


def named(places: Iterable[Network | Address]) -> str:
    """Return a lease's subnets or a node's addresses for a message: "10.1.5.0/24 and fc00:0:5::/64"."""
    return " and ".join(map(str, places))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A key under `subnets` that is no usable lease: counted, logged once, and otherwise without effect.

    `contest`: only another lease speaks against it, so it counts when that one goes.
    """

    key: str
    why: str
    contest: bool = False


@dataclass(frozen=True, slots=True)
class Uplink:
    """The interface that carries the overlay's outer packets, with its address of one family."""

    ifindex: int
    name: str
    ip: Address
    prefix_len: int
    mtu: int
    mac: Mac


@dataclass(frozen=True, slots=True)
class PodPort:
    """The host side of one pod's veth.

    `bridge` is its bridge's ifindex, 0 for a ptp veth with a host route. `shaped` is true when a qdisc, a
    foreign filter or a foreign tcx program stands on it, which a redirect would skip (CNI bandwidth plugin).
    """

    ifindex: int
    name: str
    bridge: int = 0
    shaped: bool = False


@dataclass(frozen=True, slots=True)
class PathFacts:
    """What the kernel's routing says of one peer's public address: MTU towards it, and on-link or not.

    `kernel_only`: only the kernel can send there, because it is not by the uplink and one next hop, because a
    route stops the packets or there is none, or because an IPsec policy encrypts them.
    """

    mtu: int
    on_link: bool
    kernel_only: bool = False
