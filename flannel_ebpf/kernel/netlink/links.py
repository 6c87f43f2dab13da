"""What the kernel says of devices: links and addresses.

Layouts: linux/if_link.h, linux/if_addr.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from flannel_ebpf.base.errors import DeviceMissing
from flannel_ebpf.base.family import Family, Interface
from flannel_ebpf.base.model import Mac, Uplink
from flannel_ebpf.desired.objects import VxlanLink
from flannel_ebpf.kernel.netlink.route_socket import U32, Request, RouteSocket, attribute, attributes

_RTM_GETLINK, _RTM_GETADDR = 18, 22
_IFINFOMSG = struct.Struct("=BxHiII")  # family, type, index, flags, change
_IFADDRMSG = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, index
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 10, 18
_IFLA_EXT_MASK, _IFLA_XDP = 29, 43
_SKIP_STATS = attribute(_IFLA_EXT_MASK, U32.pack(1 << 3))  # RTEXT_FILTER_SKIP_STATS
_INFO_KIND, _INFO_DATA = 1, 2
_VXLAN_ID, _VXLAN_GROUP, _VXLAN_LINK, _VXLAN_LOCAL, _VXLAN_LEARNING = 1, 2, 3, 4, 7
_VXLAN_L2MISS, _VXLAN_PORT, _VXLAN_GROUP6, _VXLAN_LOCAL6 = 13, 15, 16, 17
_VXLAN_GBP, _VXLAN_COLLECT_METADATA = 23, 25
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
    """An address of a device; `flags` as IFA_F_*, `scope` as RT_SCOPE_*."""

    ifindex: int
    interface: Interface
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


def read_addresses(netlink: RouteSocket, family: Family) -> list[Address]:
    """Return every device's addresses of one family, in the kernel's order."""
    addresses = []
    for body in netlink.dump(_RTM_GETADDR, _IFADDRMSG.pack(family.af, 0, 0, 0, 0)):
        af, length, flags, scope, index = _IFADDRMSG.unpack_from(body)
        if af != family.af:
            continue
        found = attributes(body, _IFADDRMSG.size)
        local = family.address(found.get(_IFA_LOCAL) or found[_IFA_ADDRESS])
        wide = _u32(found.get(_IFA_FLAGS)) or flags
        addresses.append(Address(index, ip_interface((local, length)), scope, wide))
    return addresses


def vxlan_link(link: Link) -> VxlanLink | None:
    """Return a vxlan device as the object we make, None when it could never have been ours.

    That is a device with a group or remote, in metadata mode, with l2miss, or without a local address.
    """
    found = attributes(link.info)
    local = found.get(_VXLAN_LOCAL) or found.get(_VXLAN_LOCAL6)
    strange = (_VXLAN_GROUP, _VXLAN_GROUP6, _VXLAN_L2MISS, _VXLAN_COLLECT_METADATA)
    odd = any(found.get(kind, b"").strip(b"\0") for kind in strange)
    if link.kind != "vxlan" or odd or not local or len(link.mac) != 6:
        return None
    return VxlanLink(
        name=link.name,
        vni=_u32(found.get(_VXLAN_ID)),
        port=int.from_bytes(found.get(_VXLAN_PORT, b""), "big"),
        local=ip_address(local),
        parent=_u32(found.get(_VXLAN_LINK)),
        mtu=link.mtu,
        mac=Mac(link.mac),
        learning=found.get(_VXLAN_LEARNING) == b"\1",
        gbp=_VXLAN_GBP in found,
        up=link.up,
    )


def uplink(link: Link, interface: Interface) -> Uplink:
    """Return a device with one of its addresses as the uplink; a device without Ethernet has a zero MAC."""
    mac = Mac(link.mac if len(link.mac) == 6 else bytes(6))
    return Uplink(link.index, link.name, interface.ip, interface.network.prefixlen, link.mtu, mac)


def _text(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")


def _u32(payload: bytes | None) -> int:
    return int(U32.unpack(payload)[0]) if payload else 0
