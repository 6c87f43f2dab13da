"""What the kernel says of devices: links and addresses, the pods' ports, the way to a peer.

Layouts: linux/if_link.h, linux/if_addr.h, linux/pkt_sched.h.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from flannel_ebpf.errors import DeviceMissing
from flannel_ebpf.kernel import tc, tcx
from flannel_ebpf.kernel.bulk import (
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
from flannel_ebpf.kernel.netlink import Request, RouteSocket, attribute, attributes
from flannel_ebpf.model import Mac, PathFacts, PodPort, Uplink
from flannel_ebpf.objects import VxlanLink

_RTM_GETLINK, _RTM_GETADDR = 18, 22
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_EXT_MASK, _IFLA_XDP = 29, 43
_SKIP_STATS = attribute(_IFLA_EXT_MASK, U32.pack(1 << 3))  # RTEXT_FILTER_SKIP_STATS
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_GROUP, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING = 1, 2, 3, 4, 7
_VXLAN_L2MISS, _VXLAN_PORT, _VXLAN_GBP, _VXLAN_COLLECT_METADATA = 13, 15, 23, 25
_XDP_ATTACHED, _XDP_PROG_ID = 2, 4
_IFF_UP = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_RTAX_MTU = 2


@dataclass(frozen=True, slots=True)
class Link:
    """A device. `info` is IFLA_INFO_DATA of its kind, `master` 0 when it is no port.

    `xdp_prog` is the id of its XDP program, 0 without; `xdp_native` whether the driver runs it.
    """

    index: int
    name: str
    kind: str
    up: bool
    mtu: int
    mac: bytes
    master: int
    info: bytes
    xdp_prog: int
    xdp_native: bool


@dataclass(frozen=True, slots=True)
class Address:
    """An IPv4 address of a device; `flags` as IFA_F_*, `scope` as RT_SCOPE_*."""

    ifindex: int
    interface: IPv4Interface
    scope: int
    flags: int


def read_links(netlink: RouteSocket) -> dict[int, Link]:
    """Return every device of the namespace by ifindex."""
    bodies = netlink.dump(_RTM_GETLINK, _IFINFOMSG.pack(0, 0, 0, 0, 0) + _SKIP_STATS)
    links = (_parse_link(body) for body in bodies)
    return {link.index: link for link in links}


def find_link(netlink: RouteSocket, name: str) -> Link | None:
    """Return the device of that name, None when there is none."""
    body = _IFINFOMSG.pack(0, 0, 0, 0, 0) + _SKIP_STATS + attribute(_IFLA_IFNAME, name.encode() + b"\0")
    [answer] = netlink.exchange([Request(_RTM_GETLINK, 0, body)])
    return None if answer.code else _parse_link(answer.body)


def index_of(netlink: RouteSocket, name: str) -> int:
    """Return a device's ifindex. Raises DeviceMissing."""
    link = find_link(netlink, name)
    if link is None:
        raise DeviceMissing(f"device {name!r} is not there", 19)
    return link.index


def _parse_link(body: bytes) -> Link:
    _, _, index, flags, _ = _IFINFOMSG.unpack_from(body)
    found = attributes(body, _IFINFOMSG.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    xdp = attributes(found.get(_IFLA_XDP, b""))
    return Link(
        index=index,
        name=_text(found[_IFLA_IFNAME]),
        kind=_text(info.get(_INFO_KIND, b"")),
        up=bool(flags & _IFF_UP),
        mtu=_u32(found.get(_IFLA_MTU)),
        mac=found.get(_IFLA_ADDRESS, b""),
        master=_u32(found.get(_IFLA_MASTER)),
        info=info.get(_INFO_DATA, b""),
        xdp_prog=_u32(xdp.get(_XDP_PROG_ID)),
        xdp_native=xdp.get(_XDP_ATTACHED, b"\0") == b"\1",  # XDP_ATTACHED_DRV
    )


def read_addresses(netlink: RouteSocket, ifindex: int = 0) -> list[Address]:
    """Return the IPv4 addresses of one device, or of all, in the kernel's order."""
    addresses = []
    for body in netlink.dump(_RTM_GETADDR, _IFADDRMSG.pack(2, 0, 0, 0, ifindex)):
        family, length, flags, scope, index = _IFADDRMSG.unpack_from(body)
        if family != 2 or (ifindex and index != ifindex):
            continue
        found = attributes(body, _IFADDRMSG.size)
        local = IPv4Address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
        wide = _u32(found.get(_IFA_FLAGS)) or flags
        addresses.append(Address(index, IPv4Interface((local, length)), scope, wide))
    return addresses


def vxlan_link(link: Link) -> VxlanLink | None:
    """Return a vxlan device as the object we make, None when it could never have been ours.

    That is a device with a group or remote, in metadata mode, with l2miss, or without a local IPv4 address.
    """
    found = attributes(link.info)
    odd = any(
        found.get(kind, b"\0").strip(b"\0") for kind in (_VXLAN_GROUP, _VXLAN_L2MISS, _VXLAN_COLLECT_METADATA)
    )
    if link.kind != "vxlan" or odd or _VXLAN_LOCAL not in found or len(link.mac) != 6:
        return None
    return VxlanLink(
        name=link.name,
        vni=_u32(found.get(_VXLAN_ID)),
        port=int.from_bytes(found.get(_VXLAN_PORT, b""), "big"),
        local=IPv4Address(found[_VXLAN_LOCAL]),
        parent=_u32(found.get(_VXLAN_LINK)),
        mtu=link.mtu,
        mac=Mac(link.mac),
        learning=found.get(_VXLAN_LEARNING) == b"\1",
        gbp=_VXLAN_GBP in found,
        up=link.up,
    )


def uplink(link: Link, address: Address) -> Uplink:
    """Return a device with one of its addresses as the uplink; a device without Ethernet has a zero MAC."""
    mac = Mac(link.mac if len(link.mac) == 6 else bytes(6))
    interface = address.interface
    return Uplink(link.index, link.name, interface.ip, interface.network.prefixlen, link.mtu, mac)


class Links:
    """Questions about the node's devices, asked through one socket (and so in its namespace and thread)."""

    def __init__(self, netlink: RouteSocket) -> None:
        self._netlink = netlink

    def uplink_by_index(self, ifindex: int, ip: IPv4Address) -> Uplink | None:
        """Return the uplink as it is now, None when the device or its address `ip` is gone."""
        link = read_links(self._netlink).get(ifindex)
        for address in read_addresses(self._netlink, ifindex) if link else ():
            if link and address.interface.ip == ip:
                return uplink(link, address)
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
        shaped = tc.shaped_devices(self._netlink, ports) | tcx.shaped_devices(ports)
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


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")


def _u32(payload: bytes | None) -> int:
    return int(U32.unpack(payload)[0]) if payload else 0
