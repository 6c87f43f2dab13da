"""The cluster's network config: JSON under `<prefix>/config`, read with flannel's rules and defaults.

Rules of the network: flannel pkg/subnet/config.go. Keys of the backends: pkg/backend/{vxlan,hostgw,udp}.
Ranges of VNI, port and MTU are the kernel's; flannel leaves them to it, we say so before a device is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError
from typing import Any, ClassVar, Literal

from flannel_ebpf.base.errors import ConfigError, UnknownBackend

BackendType = Literal["vxlan", "host-gw", "udp"]

KNOWN_BACKENDS: tuple[BackendType, ...] = ("vxlan", "host-gw", "udp")

OTHER_FLANNEL_BACKENDS = ("alloc", "extension", "ipip", "ipsec", "tencent-vpc", "wireguard")
"""Types that flanneld has and this program has not."""

VXLAN_PORT = 8472
"""Linux's own default, older than the 4789 of RFC 7348."""
UDP_PORT = 8285

MAX_VNI = 2**24 - 1
MAX_PORT = 2**16 - 1
MIN_VXLAN_MTU = 68 + 50
"""Uplink MTU that leaves flannel.<VNI> IPv4's least MTU, 68, below 50 bytes of outer headers."""
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
class NetworkConfig:
    """A checked network config with every default filled in.

    Subnets of length `subnet_len` whose network address lies in `subnet_min`..`subnet_max`, both
    inclusive and aligned, may be leased.
    """

    network: IPv4Network
    subnet_len: int
    subnet_min: IPv4Address
    subnet_max: IPv4Address
    enable_nftables: bool
    backend: VxlanConfig | HostGwConfig | UdpConfig

    @property
    def backend_type(self) -> BackendType:
        """The backend's name in flannel."""
        return self.backend.type


def parse_network_config(text: str, source: str) -> NetworkConfig:
    """Read and check a network config; `source` says in errors where `text` came from.

    Keys match in any letter case, unknown keys are ignored, null counts as not given, CIDRs are masked to
    their network address: all as flanneld reads it. Raises ConfigError, and as its subclass UnknownBackend
    for a backend that only another program, or none, can run.
    """
    keys = _read_object(text, source)
    if not keys.flag("EnableIPv4", True):
        raise keys.error("EnableIPv4", "true, which is also the default: only IPv4 networks are implemented")
    if keys.flag("EnableIPv6", False):
        raise keys.error("EnableIPv6", "false or absent: IPv6 comes later")
    network = _network(keys)
    subnet_len = _subnet_len(keys, network)
    subnet_min, subnet_max = _subnet_range(keys, network, subnet_len)
    return NetworkConfig(
        network=network,
        subnet_len=subnet_len,
        subnet_min=subnet_min,
        subnet_max=subnet_max,
        enable_nftables=keys.flag("EnableNFTables", False),
        backend=_backend(keys),
    )


def _network(keys: _Keys) -> IPv4Network:
    text = keys.text("Network")
    expected = "an IPv4 network such as 10.1.0.0/16"
    if text is None:
        raise keys.error("Network", expected)
    address, _, length = text.partition("/")
    if not (length.isascii() and length.isdigit()):  # Python also reads netmasks, which Go does not
        raise keys.error("Network", expected)
    try:
        network = IPv4Network((address, int(length)), strict=False)
    except (AddressValueError, NetmaskValueError) as error:
        raise keys.error("Network", expected) from error
    if network.prefixlen == 0:
        raise keys.error("Network", f"{expected}, not the whole of IPv4")
    return network


def _subnet_len(keys: _Keys, network: IPv4Network) -> int:
    given = keys.number("SubnetLen", 0, 0, MAX_PORT)
    if given == 0:  # as in Go, where 0 and absent are the same
        if network.prefixlen > 28:
            raise keys.error("Network", "at most a /28, so that it holds four subnets of four addresses")
        return 24 if network.prefixlen <= 22 else network.prefixlen + 2
    if given > 30:
        raise keys.error("SubnetLen", "at most 30, so that a subnet holds a bridge and a pod")
    if given < network.prefixlen + 2:
        raise keys.error(
            "SubnetLen", f"at least {network.prefixlen + 2}, so that Network {network} holds four subnets"
        )
    return given


def _subnet_range(keys: _Keys, network: IPv4Network, subnet_len: int) -> tuple[IPv4Address, IPv4Address]:
    size = 2 ** (32 - subnet_len)
    # The first subnet is left out: its network address is also the whole network's.
    first = keys.address("SubnetMin") or network.network_address + size
    last = keys.address("SubnetMax") or network.broadcast_address - size + 1
    for key, address in (("SubnetMin", first), ("SubnetMax", last)):
        if address not in network:
            raise keys.error(key, f"an address inside Network {network}")
        if int(address) % size:
            aligned = IPv4Address(int(address) - int(address) % size)
            raise keys.error(key, f"the first address of a /{subnet_len} subnet, such as {aligned}")
    if first > last:  # flanneld starts and reports "out of subnets" on every node
        key = "SubnetMin" if "SubnetMin" in keys else "SubnetMax"
        raise keys.error(key, f"SubnetMin {first} not above SubnetMax {last}")
    return first, last


def _backend(keys: _Keys) -> VxlanConfig | HostGwConfig | UdpConfig:
    if "Backend" not in keys:
        return UdpConfig()  # flannel's default since before vxlan existed
    backend = keys.object("Backend")
    name = (backend.text("Type") or "").lower()
    if name == "vxlan":
        return VxlanConfig(
            vni=backend.number("VNI", 1, 0, MAX_VNI),
            port=backend.number("Port", 0, 0, MAX_PORT) or VXLAN_PORT,
            mtu=_vxlan_mtu(backend),
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


def _vxlan_mtu(backend: _Keys) -> int:
    mtu = backend.number("MTU", 0, 0, MAX_MTU)
    if 0 < mtu < MIN_VXLAN_MTU:
        raise backend.error("MTU", f"0 (take the uplink's) or {MIN_VXLAN_MTU} to {MAX_MTU}")
    return mtu


class _Keys:
    """Typed access to one JSON object, blind to letter case, with errors that say where a key stands."""

    def __init__(self, values: dict[str, Any], source: str, parent: str = "") -> None:
        self._values = values
        self._source = source
        self._parent = parent

    def __contains__(self, key: str) -> bool:
        return key.casefold() in self._values

    def error(self, key: str, expected: str) -> ConfigError:
        return ConfigError(
            f"{self._source}, key {self._parent}{key}", self._values.get(key.casefold()), expected
        )

    def _value(self, key: str, kind: type, expected: str) -> Any:
        value = self._values.get(key.casefold())
        if value is not None and type(value) is not kind:  # exactly: True is an int to isinstance
            raise self.error(key, expected)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, bool, "true or false, without quotes")
        return default if value is None else bool(value)

    def number(self, key: str, default: int, low: int, high: int) -> int:
        expected = f"a whole number from {low} to {high}, without quotes"
        value = self._value(key, int, expected)
        if value is None:
            return default
        if not low <= value <= high:
            raise self.error(key, expected)
        return int(value)

    def text(self, key: str) -> str | None:
        value = self._value(key, str, "a text in quotes")
        return None if value is None else str(value)

    def address(self, key: str) -> IPv4Address | None:
        text = self.text(key)
        if text is None:
            return None
        try:
            address = IPv4Address(text)
        except AddressValueError as error:
            raise self.error(key, "an IPv4 address such as 10.1.16.0") from error
        return None if address == IPv4Address(0) else address  # as in Go, where it means absent

    def object(self, key: str) -> _Keys:
        value = self._value(key, dict, 'an object such as {"Type": "vxlan"}')
        return _Keys(value or {}, self._source, f"{key}.")


def _read_object(text: str, source: str) -> _Keys:
    expected = 'a JSON object such as {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}'
    try:
        values = json.loads(text, object_pairs_hook=_fold, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, _shortened(text), f"{expected} ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(source, _shortened(text), expected)
    return _Keys(values, source)


def _fold(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Keep the last value of each key that is not null, whatever its letter case (Go's encoding/json)."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if value is not None or key.casefold() not in values:
            values[key.casefold()] = value
    return values


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
