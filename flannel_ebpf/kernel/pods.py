"""Where this node's pods are: the host sides of their veths, and the MACs behind them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from flannel_ebpf.base.family import Address, Family, Network, family_of
from flannel_ebpf.base.model import Mac, PodPort
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.netlink.bulk import read_dynamic
from flannel_ebpf.kernel.netlink.routes import RTN_UNICAST
from flannel_ebpf.kernel.seen import Seen


def pod_ports(seen: Seen, subnets: Iterable[Network]) -> list[PodPort]:
    """Return the host side of every pod's veth, in order of ifindex.

    These are the veths in a bridge that has an address inside one of `subnets` (cni0, docker0), and those
    that a route to a single address inside it points at (CNI's ptp). Raises KernelError.
    """
    subnets = tuple(subnets)
    bridges = {index for subnet in subnets for index in _bridges(seen, subnet)}
    veths = [link for link in seen.links.values() if link.kind == "veth"]
    ports = {link.index: link for link in veths if link.master in bridges}
    if any(not link.master for link in veths):
        routed = {index for subnet in subnets for index in _host_routes(seen, subnet)}
        ports |= {link.index: link for link in veths if not link.master and link.index in routed}
    shaped = clsact.shaped_devices(seen, ports) | tcx.shaped_devices(seen, ports)
    return [PodPort(index, link.name, link.master, index in shaped) for index, link in sorted(ports.items())]


def _bridges(seen: Seen, subnet: Network) -> Iterator[int]:
    """Yield the bridges that have an address inside `subnet`."""
    for address in seen.addresses(family_of(subnet)):
        link = seen.links.get(address.ifindex)
        if link and link.kind == "bridge" and address.interface.ip in subnet:
            yield link.index


def _host_routes(seen: Seen, subnet: Network) -> set[int]:
    """Return the devices to which routes to single addresses of `subnet` lead."""
    family = family_of(subnet)
    base, mask = int(subnet.network_address), int(subnet.netmask)
    return {
        route.oif
        for route in seen.routes(family)
        if route.dst[1] == family.bits and route.dst[0] & mask == base
        if route.plain and route.kind == RTN_UNICAST
    }


def pod_macs(seen: Seen, ports: Iterable[PodPort], family: Family) -> dict[Address, Mac | None]:
    """Return the MACs of addresses behind pods' ports as the kernel learned them, None for a silent one."""
    return read_dynamic(seen.netlink, {port.bridge or port.ifindex for port in ports}, family)
