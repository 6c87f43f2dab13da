"""What the control plane talks about: leases, peers and this node. Values only, no behaviour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Network
from typing import Any

from flannel_ebpf.base.errors import ConfigError


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


def in_order(subnet: IPv4Network) -> tuple[int, int]:
    """Return what sorts as `subnet` does; to compare the subnets themselves takes ten times as long."""
    return int(subnet.network_address), subnet.prefixlen


@dataclass(frozen=True, slots=True)
class Lease:
    """One subnet lease as etcd holds it (flannel pkg/lease: key plus JSON value).

    `backend_type` is "" where flannel writes none (udp, alloc). `backend_data` is the decoded JSON of
    BackendData, or None. `extra` holds unknown fields, kept when we rewrite our own lease.
    `etcd_lease` is etcd's lease id, 0 for a reservation (a key without TTL). `key` is the whole etcd key,
    `subnet6` the IPv6 half of a dual-stack key.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    backend_type: str = ""
    backend_data: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)
    etcd_lease: int = 0
    mod_revision: int = 0
    create_revision: int = 0
    key: str = ""
    subnet6: IPv6Network | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """A key under `subnets` that is no usable lease: counted, logged once, and otherwise without effect."""

    key: str
    why: str


@dataclass(frozen=True, slots=True)
class Uplink:
    """The interface that carries the overlay's outer packets."""

    ifindex: int
    name: str
    ip: IPv4Address
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

    `ipsec`: a policy encrypts or stops tunnel packets to it, which only the kernel can do.
    """

    mtu: int
    on_link: bool
    ipsec: bool = False
