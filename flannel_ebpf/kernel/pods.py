"""Where this node's pods are: the host sides of their veths, and the MACs behind them."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Mac, PodPort
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.netlink.bulk import read_dynamic
from flannel_ebpf.kernel.netlink.routes import RTN_UNICAST
from flannel_ebpf.kernel.seen import Seen


def pod_ports(seen: Seen, subnet: Network) -> list[PodPort]:
    """Return the host side of every pod's veth, in order of ifindex.

    These are the veths in a bridge that has an address inside `subnet` (cni0, docker0), and those that a
    /32 route inside it points at (CNI's ptp). Raises KernelError.
    """
    bridges = {a.ifindex for a in seen.addresses if a.interface.ip in subnet}
    bridges = {index for index in bridges if index in seen.links and seen.links[index].kind == "bridge"}
    veths = [link for link in seen.links.values() if link.kind == "veth"]
    ports = {link.index: link for link in veths if link.master in bridges}
    if any(not link.master for link in veths):
        routed = _host_routes(seen, subnet)
        ports |= {link.index: link for link in veths if not link.master and link.index in routed}
    shaped = clsact.shaped_devices(seen, ports) | tcx.shaped_devices(seen, ports)
    return [PodPort(index, link.name, link.master, index in shaped) for index, link in sorted(ports.items())]


def _host_routes(seen: Seen, subnet: Network) -> set[int]:
    """Return the devices to which routes to single addresses of `subnet` lead."""
    base, mask = int(subnet.network_address), int(subnet.netmask)
    return {
        route.oif
        for route in seen.routes
        if route.dst[1] == 32 and route.dst[0] & mask == base and route.plain and route.kind == RTN_UNICAST
    }


def pod_macs(seen: Seen, ports: Iterable[PodPort]) -> dict[IPv4Address, Mac | None]:
    """Return the MACs of addresses behind pods' ports as ARP says, None for one that does not answer."""
    return read_dynamic(seen.netlink, {port.bridge or port.ifindex for port in ports})
