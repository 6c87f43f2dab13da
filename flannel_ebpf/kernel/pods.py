"""What the kernel says of pods and peers: the pods' ports and addresses, the way to a peer.

Layouts: linux/rtnetlink.h.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from flannel_ebpf.base.model import Mac, PathFacts, PodPort, Uplink
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.netlink.bulk import (
    RTA_DST,
    RTA_GATEWAY,
    RTA_METRICS,
    RTA_OIF,
    RTA_VIA,
    RTM_GETROUTE,
    RTMSG,
    U32,
    KernelRoute,
    more_specific,
    read_dynamic,
    read_main_table,
)
from flannel_ebpf.kernel.netlink.links import read_addresses, read_links, uplink
from flannel_ebpf.kernel.netlink.route_socket import Request, RouteSocket, attribute, attributes

_RTAX_MTU = 2


class Links:
    """Questions about the node's devices, asked through one socket (and so in its namespace and thread)."""

    def __init__(self, netlink: RouteSocket) -> None:
        self._netlink = netlink

    def uplink_by_index(self, ifindex: int, ip: IPv4Address) -> Uplink | None:
        """Return the uplink as it is now, None when the device or its address `ip` is gone."""
        link = read_links(self._netlink).get(ifindex)
        for address in read_addresses(self._netlink, ifindex) if link else ():
            if link and address.interface.ip == ip:
                return uplink(link, address.interface)
        return None

    def pod_ports(self, subnet: IPv4Network) -> list[PodPort]:
        """Return the host side of every pod's veth, in order of ifindex.

        These are the veths in a bridge that has an address inside `subnet` (cni0, docker0), and those that a
        /32 route inside it points at (CNI's ptp).
        """
        links = read_links(self._netlink)
        bridges = {a.ifindex for a in read_addresses(self._netlink) if a.interface.ip in subnet}
        bridges = {index for index in bridges if index in links and links[index].kind == "bridge"}
        veths = [link for link in links.values() if link.kind == "veth"]
        ports = {link.index: link for link in veths if link.master in bridges}
        if any(not link.master for link in veths):
            routed = {
                route.oif for route in read_main_table(self._netlink, min_length=32) if _inside(route, subnet)
            }
            ports |= {link.index: link for link in veths if not link.master and link.index in routed}
        shaped = clsact.shaped_devices(self._netlink, ports) | tcx.shaped_devices(ports)
        return [
            PodPort(index, link.name, link.master, index in shaped) for index, link in sorted(ports.items())
        ]

    def pod_macs(self, ports: Iterable[PodPort]) -> dict[IPv4Address, Mac | None]:
        """Return the MACs of addresses behind pods' ports as ARP says, None for one that does not answer."""
        return read_dynamic(self._netlink, {port.bridge or port.ifindex for port in ports})

    def path_facts(self, addresses: Iterable[IPv4Address], uplink: Uplink) -> dict[IPv4Address, PathFacts]:
        """Return how the kernel would reach each address; one without a route is left out.

        An address in the uplink's own prefix with no more specific route is on-link at the uplink's MTU, and
        takes no request: so nearly all nodes of one LAN.
        """
        onlink = IPv4Interface((uplink.ip, uplink.prefix_len)).network
        exceptions = more_specific(self._netlink, onlink)
        facts = {}
        asked = []
        for address in addresses:
            if address in onlink and address != uplink.ip and not _covered(address, exceptions):
                facts[address] = PathFacts(uplink.mtu, on_link=True)
            else:
                asked.append(address)
        return facts | self.ask_paths(asked)

    def ask_paths(self, asked: Sequence[IPv4Address]) -> dict[IPv4Address, PathFacts]:
        """Return the same of a few addresses, asking for each."""
        return dict(self._ask_paths(asked))

    def _ask_paths(self, asked: Sequence[IPv4Address]) -> Iterator[tuple[IPv4Address, PathFacts]]:
        mtus = {index: link.mtu for index, link in read_links(self._netlink).items()} if asked else {}
        header = RTMSG.pack(2, 32, 0, 0, 0, 0, 0, 0, 0)
        requests = [Request(RTM_GETROUTE, 0, header + attribute(RTA_DST, a.packed)) for a in asked]
        for address, answer in zip(asked, self._netlink.exchange(requests), strict=True):
            if answer.code:
                continue
            found = attributes(answer.body, RTMSG.size)
            metrics = attributes(found.get(RTA_METRICS, b""))
            mtu = _u32(metrics.get(_RTAX_MTU)) or mtus.get(_u32(found.get(RTA_OIF)), 0)
            yield address, PathFacts(mtu, RTA_GATEWAY not in found and RTA_VIA not in found)


def _covered(address: IPv4Address, routes: Mapping[int, Container[int]]) -> bool:
    """Say whether a route (length -> addresses) leads to the address."""
    return any(int(address) >> (32 - length) << (32 - length) in found for length, found in routes.items())


def _inside(route: KernelRoute, network: IPv4Network) -> bool:
    return route.dst[0] & int(network.netmask) == int(network.network_address)


def _u32(payload: bytes | None) -> int:
    return int(U32.unpack(payload)[0]) if payload else 0
