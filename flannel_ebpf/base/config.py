"""The cluster's network config: JSON under `<prefix>/config`, read with flannel's rules and defaults.

Rules of the network: flannel pkg/subnet/config.go. Keys of the backends: pkg/backend/{vxlan,hostgw,udp}.
Ranges of VNI, port and MTU are the kernel's; flannel leaves them to it, we say so before a device is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from flannel_ebpf.base.errors import UnknownBackend
from flannel_ebpf.base.family import NO_NODES, Address, Family, Network, family_of
from flannel_ebpf.base.json_keys import Keys, read_object

BackendType = Literal["vxlan", "host-gw", "udp"]

KNOWN_BACKENDS: tuple[BackendType, ...] = ("vxlan", "host-gw", "udp")

OTHER_FLANNEL_BACKENDS = ("alloc", "extension", "ipip", "ipsec", "tencent-vpc", "wireguard")
"""Types that flanneld has and this program has not."""

VXLAN_PORT = 8472
"""Linux's own default, older than the 4789 of RFC 7348."""
UDP_PORT = 8285

MAX_VNI = 2**24 - 1
MAX_PORT = 2**16 - 1
MIN_VXLAN_MTU = {Family.V4: 68 + 50, Family.V6: 1280 + 70}
"""Uplink MTU that leaves the vxlan device its family's least (RFC 791, RFC 8200) below the outer headers."""
MAX_MTU = 65535


@dataclass(frozen=True, slots=True)
class VxlanConfig:
    """Backend `vxlan`. `mtu` is the uplink's, before the overhead; 0: whatever the uplink has."""

    type: ClassVar[BackendType] = "vxlan"
    vni: int = 1
    port: int = VXLAN_PORT
    mtu: int = 0
    gbp: bool = False
    learning: bool = False
    direct_routing: bool = False


@dataclass(frozen=True, slots=True)
class HostGwConfig:
    """Backend `host-gw`, which has no keys."""

    type: ClassVar[BackendType] = "host-gw"


@dataclass(frozen=True, slots=True)
class UdpConfig:
    """Backend `udp`."""

    type: ClassVar[BackendType] = "udp"
    port: int = UDP_PORT


@dataclass(frozen=True, slots=True)
class Pool:
    """One family's addresses of a network, and which of its subnets may be leased.

    Those are of length `subnet_len`, with a network address in `subnet_min`..`subnet_max`, both inclusive and
    aligned.
    """

    network: Network
    subnet_len: int
    subnet_min: Address
    subnet_max: Address

    @property
    def family(self) -> Family:
        """Which family it is."""
        return family_of(self.network)

    @property
    def leasable(self) -> range:
        """The numbers of all addresses in subnets that may be leased."""
        return range(int(self.subnet_min), int(self.subnet_max) + 2 ** (self.family.bits - self.subnet_len))

    def offers(self, subnet: Network) -> bool:
        """Say whether `subnet` is one of those that may be leased."""
        first, last = int(self.subnet_min), int(self.subnet_max)
        same = (subnet.version, subnet.prefixlen) == (self.network.version, self.subnet_len)
        return same and first <= int(subnet.network_address) <= last


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A checked network config with every default filled in; `pools` has one for each family, IPv4 first."""

    pools: tuple[Pool, ...]
    enable_nftables: bool
    backend: VxlanConfig | HostGwConfig | UdpConfig

    @property
    def network(self) -> Network:
        """The first family's network, by which a host knows this one: files, pins and locks are named so."""
        return self.pools[0].network

    @property
    def networks(self) -> tuple[Network, ...]:
        """The network of each family."""
        return tuple(pool.network for pool in self.pools)

    @property
    def backend_type(self) -> BackendType:
        """The backend's name in flannel."""
        return self.backend.type


def parse_network_config(text: str, source: str) -> NetworkConfig:
    """Read and check a network config; `source` says in errors where `text` came from.

    Keys match in any letter case, unknown keys are ignored, CIDRs are masked to their network address, null
    counts as not given: as flanneld reads it, which refuses null for SubnetMin and SubnetMax alone. Raises
    ConfigError, and as its subclass UnknownBackend for a backend that only another program, or none, can run.
    """
    keys = read_object(text, source)
    enabled = {Family.V4: keys.flag("EnableIPv4", True), Family.V6: keys.flag("EnableIPv6", False)}
    pools = tuple(_pool(keys, _RULES[family]) for family in Family if enabled[family])
    if not pools:
        raise keys.error("EnableIPv4", "true, or EnableIPv6 true: a network has at least one family")
    return NetworkConfig(
        pools=pools,
        enable_nftables=keys.flag("EnableNFTables", False),
        backend=_backend(keys, enabled),
    )


@dataclass(frozen=True, slots=True)
class _Rules:
    """What flannel asks of one family: its keys' first word, subnets' usual length, examples for errors."""

    family: Family
    word: str
    usual_len: int
    network: str
    subnet: str


_RULES = {
    Family.V4: _Rules(Family.V4, "", 24, "10.1.0.0/16", "10.1.16.0"),
    Family.V6: _Rules(Family.V6, "IPv6", 64, "fc00::/48", "fc00:0:0:16::"),
}


def _pool(keys: Keys, rules: _Rules) -> Pool:
    network = _network(keys, rules)
    subnet_len = _subnet_len(keys, rules, network)
    return Pool(network, subnet_len, *_subnet_range(keys, rules, network, subnet_len))


def _network(keys: Keys, rules: _Rules) -> Network:
    key = f"{rules.word}Network"
    text = keys.text(key)
    expected = f"an {rules.family} network such as {rules.network}"
    if text is None:
        raise keys.error(key, expected)
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdigit()) or "%" in address:  # Python also reads netmasks and zones
        raise keys.error(key, expected)
    try:
        network = rules.family.network(address, int(length), strict=False)
    except ValueError as error:
        raise keys.error(key, expected) from error
    if network.prefixlen == 0:
        raise keys.error(key, f"{expected}, not the whole of {rules.family}")
    for nobodys in NO_NODES[rules.family]:
        if network.overlaps(nobodys):
            raise keys.error(key, f"{expected}, not {nobodys}, whose addresses no pod can have")
    return network


def _subnet_len(keys: Keys, rules: _Rules, network: Network) -> int:
    key, bits = f"{rules.word}SubnetLen", rules.family.bits
    given = keys.number(key, 0, 0, MAX_PORT)
    if given == 0:  # as in Go, where 0 and absent are the same
        if network.prefixlen > bits - 4:
            at_most = f"at most a /{bits - 4}, so that it holds four subnets of four addresses"
            raise keys.error(f"{rules.word}Network", at_most)
        return rules.usual_len if network.prefixlen <= rules.usual_len - 2 else network.prefixlen + 2
    if given > bits - 2:
        raise keys.error(key, f"at most {bits - 2}, so that a subnet holds a bridge and a pod")
    least = network.prefixlen + 2
    if given < least:
        raise keys.error(key, f"at least {least}, so that {rules.word}Network {network} holds four subnets")
    return given


def _subnet_range(keys: Keys, rules: _Rules, network: Network, subnet_len: int) -> tuple[Address, Address]:
    family, size = rules.family, 2 ** (rules.family.bits - subnet_len)
    lowest, highest = f"{rules.word}SubnetMin", f"{rules.word}SubnetMax"
    # The first subnet is left out: its network address is also the whole network's.
    first = keys.address(lowest, family, rules.subnet) or network.network_address + size
    last = keys.address(highest, family, rules.subnet) or network.broadcast_address - size + 1
    for key, address in ((lowest, first), (highest, last)):
        if address not in network:
            raise keys.error(key, f"an address inside {rules.word}Network {network}")
        if int(address) % size:
            aligned = family.address(int(address) - int(address) % size)
            raise keys.error(key, f"the first address of a /{subnet_len} subnet, such as {aligned}")
    if int(first) > int(last):  # flanneld starts and reports "out of subnets" on every node
        key = lowest if lowest in keys else highest
        raise keys.error(key, f"{lowest} {first} not above {highest} {last}")
    return first, last


def _backend(keys: Keys, enabled: Mapping[Family, bool]) -> VxlanConfig | HostGwConfig | UdpConfig:
    backend = keys.object("Backend")
    # Without a Backend flannel takes udp, its default since before vxlan existed.
    name = (backend.text("Type") or "").lower() if "Backend" in keys else UdpConfig.type
    if name == UdpConfig.type and not enabled[Family.V4]:
        raise backend.error("Type", "vxlan or host-gw where EnableIPv4 is false: udp carries IPv4 alone")
    if name == "vxlan":
        return VxlanConfig(
            vni=backend.number("VNI", 1, 0, MAX_VNI),
            port=backend.number("Port", 0, 0, MAX_PORT) or VXLAN_PORT,
            mtu=_vxlan_mtu(backend, Family.V6 if enabled[Family.V6] else Family.V4),
            gbp=backend.flag("GBP", False),
            learning=backend.flag("Learning", False),
            direct_routing=backend.flag("DirectRouting", False),
        )
    if name == "host-gw":
        return HostGwConfig()
    if name == "udp":
        return UdpConfig(port=backend.number("Port", UDP_PORT, 1, MAX_PORT))
    known = ", ".join(KNOWN_BACKENDS)
    if name in OTHER_FLANNEL_BACKENDS:
        known += f"; flannel's {name} is not implemented by flannel-ebpf"
    error = backend.error("Type", f"one of {known}")
    raise UnknownBackend(error.source, error.value, error.expected)


def _vxlan_mtu(backend: Keys, family: Family) -> int:
    mtu, least = backend.number("MTU", 0, 0, MAX_MTU), MIN_VXLAN_MTU[family]
    if 0 < mtu < least:
        raise backend.error("MTU", f"0 (take the uplink's) or {least} to {MAX_MTU} with {family}")
    return mtu
