"""The vxlan backend (flannel pkg/backend/vxlan): one device, and per peer a neighbour, an FDB entry, a route.

All of it once for each family: IPv6 packets travel through a device of their own, between IPv6 addresses.
With DirectRouting a peer on the uplink's own link gets a plain route instead, as in host-gw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import ip_interface
from typing import Any

from flannel_ebpf.base.config import NetworkConfig, VxlanConfig
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.base.model import LeasePart, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends.peer import Peer, Stack, path_to, remote
from flannel_ebpf.desired.objects import FdbEntry, LinkAddress, Neighbour, Object, Route, Sysctl, VxlanLink

BACKEND_TYPE = "vxlan"
OVERHEAD = {Family.V4: 20 + 8 + 8 + 14, Family.V6: 40 + 8 + 8 + 14}
"""Outer IP, UDP, VXLAN and inner Ethernet octets (RFC 7348). flannel counts 50 for IPv6, too (its #1781)."""

LEAST_MTU = 1280
"""Octets of a packet that every link of IPv6 must carry (RFC 8200)."""


def settings(config: NetworkConfig) -> VxlanConfig:
    """Return the vxlan settings of a network whose backend is vxlan."""
    if not isinstance(config.backend, VxlanConfig):
        raise ConfigError("Backend.Type", config.backend_type, "vxlan")
    return config.backend


def overlay_name(config: NetworkConfig, family: Family) -> str:
    """Return `flannel.<VNI>`, for IPv6 `flannel-v6.<VNI>`."""
    return f"flannel{'' if family is Family.V4 else '-v6'}.{settings(config).vni}"


def mtu(config: NetworkConfig, uplink: Uplink) -> int:
    """Return the configured or the uplink's MTU, less the overhead."""
    return (settings(config).mtu or uplink.mtu) - OVERHEAD[family_of(uplink.ip)]


def obstacle(config: NetworkConfig, uplink: Uplink) -> str:
    """Say when the tunnel is too narrow for IPv6: the kernel takes the protocol off such a device."""
    narrow = mtu(config, uplink)
    if family_of(uplink.ip) is Family.V4 or narrow >= LEAST_MTU:
        return ""
    least = LEAST_MTU + OVERHEAD[Family.V6]
    return f"{uplink.name} leaves tunnel packets {narrow} octets: IPv6 needs {LEAST_MTU}, an MTU of {least}"


def lease_data(config: NetworkConfig, mac: Mac | None) -> tuple[str, Any]:
    """Return `vxlan` and the VNI and VTEP MAC, in flanneld's field order."""
    return BACKEND_TYPE, {"VNI": settings(config).vni, "VtepMAC": str(mac)}


def vtep_mac_of(part: LeasePart) -> Mac:
    """Read the VTEP MAC of a vxlan lease; raises ConfigError saying what is wrong with it."""
    text = _fields(part).get("vtepmac")
    name = "BackendData" if family_of(part.subnet) is Family.V4 else "BackendV6Data"
    if not isinstance(text, str):
        raise ConfigError(f"lease {part.subnet} {name}", part.backend_data, "an object with a VtepMAC string")
    mac = Mac.parse(text)
    if mac.octets[0] & 1 or not any(mac.octets):
        raise ConfigError(f"lease {part.subnet} VtepMAC", text, "the address of one device")
    return mac


def _fields(part: LeasePart) -> dict[str, Any]:
    """Return a lease's BackendData by small names, as Go's decoder matches them."""
    data = part.backend_data
    return {key.lower(): value for key, value in data.items()} if isinstance(data, dict) else {}


def peers(
    stack: Stack, parts: Sequence[LeasePart], paths: Mapping[Address, PathFacts]
) -> tuple[list[Peer], list[Skipped]]:
    """Return the vxlan leases of other nodes; one of another type or VNI or without a VTEP MAC is skipped."""
    found: list[Peer] = []
    skipped: list[Skipped] = []
    direct_routing, own_vni = settings(stack.config).direct_routing, settings(stack.config).vni
    # With GBP the kernel's device writes a packet's mark, which netfilter sets, into the VXLAN header.
    gbp = settings(stack.config).gbp
    largest = settings(stack.config).mtu  # as the kernel's device has it; 0: the way alone limits packets
    for part in remote(stack, parts):
        if part.backend_type != BACKEND_TYPE:
            skipped.append(Skipped(str(part.subnet), f"BackendType {part.backend_type!r} is not vxlan"))
            continue
        try:
            mac = vtep_mac_of(part)
        except ConfigError as error:
            skipped.append(Skipped(str(part.subnet), str(error)))
            continue
        path = path_to(stack, part, paths)
        direct = direct_routing and path.on_link
        vni = _fields(part).get("vni", own_vni)
        if vni != own_vni and not direct:  # flanneld does not look, and its packets end there unseen
            skipped.append(Skipped(str(part.subnet), f"VNI {vni!r} is not the network's {own_vni}"))
            continue
        mode = Mode.DIRECT if direct else Mode.NONE if gbp or path.kernel_only else Mode.VXLAN
        found.append(
            Peer(
                subnet=part.subnet,
                public_ip=part.public_ip,
                mode=mode,
                mtu=path.mtu if direct else min(path.mtu, largest or path.mtu),
                on_link=path.on_link,
                vtep_mac=None if direct else mac,
            )
        )
    return found, skipped


def objects(stack: Stack, peers: Sequence[Peer]) -> list[Object]:
    """Return the device with its address, and what leads to each peer."""
    vxlan = settings(stack.config)
    name = overlay_name(stack.config, stack.family)
    if stack.vtep_mac is None:
        raise ConfigError("VTEP MAC", None, "an address for the vxlan device")
    found: list[Object] = [
        VxlanLink(
            name=name,
            vni=vxlan.vni,
            port=vxlan.port,
            local=stack.public_ip,
            parent=stack.uplink.ifindex,
            mtu=mtu(stack.config, stack.uplink),
            mac=stack.vtep_mac,
            learning=vxlan.learning,
            gbp=vxlan.gbp,
        ),
        LinkAddress(name, ip_interface((stack.subnet.network_address, stack.family.bits))),
        Sysctl(f"net/ipv6/conf/{name}/accept_ra", "0"),
    ]
    if stack.family is Family.V6:  # hosts switch it off for devices to come, and there are no addresses then
        found.append(Sysctl(f"net/ipv6/conf/{name}/disable_ipv6", "0"))
    stations: dict[Mac, FdbEntry] = {}  # a node may have two leases, and one entry serves both
    for peer in peers:
        if peer.vtep_mac is None:
            found.append(Route(peer.subnet, peer.public_ip, stack.uplink.name))
            continue
        neighbour, route, station = way_to(name, peer.subnet, peer.vtep_mac, peer.public_ip)
        found += (neighbour, route)
        stations[peer.vtep_mac] = station
    return [*found, *stations.values()]


def way_to(overlay: str, subnet: Network, mac: Mac, public_ip: Address) -> tuple[Neighbour, Route, FdbEntry]:
    """Return what leads by the device to one peer's subnet."""
    far = subnet.network_address
    return (
        Neighbour(overlay, far, mac),
        Route(subnet, far, overlay, onlink=True),
        FdbEntry(overlay, mac, public_ip),
    )
