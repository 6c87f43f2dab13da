"""The udp backend's TUN device: persistent, so that routes and address outlive the relay that serves it."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from io import FileIO
from pathlib import Path
from socket import AF_INET

from flannel_ebpf.base.errors import DeviceMissing, KernelError
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.desired.objects import ROUTE_PROTOCOL
from flannel_ebpf.kernel.netlink.iproute import IPRoute, NetlinkError

_TUNSETIFF = 0x400454CA
_TUNSETPERSIST = 0x400454CB
_IFF_UP = 1
_FLAGS = 0x0001 | 0x1000 | 0x0100
"""IFF_TUN | IFF_NO_PI | IFF_MULTI_QUEUE of linux/if_tun.h."""


def open_queues(name: str, count: int) -> list[FileIO]:
    """Return `count` non-blocking queues of the TUN device `name`, which is made if it is not there.

    A read gives one bare IP packet, or None when there is none. Raises KernelError.
    """
    return [_open_queue(name) for _ in range(count)]


def _open_queue(name: str) -> FileIO:
    try:
        fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    except OSError as error:
        raise KernelError(
            f"/dev/net/tun: {error.strerror} (is the tun module loaded?)", error.errno or 0
        ) from error
    try:
        fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _FLAGS))
        fcntl.ioctl(fd, _TUNSETPERSIST, 1)
    except OSError as error:
        os.close(fd)
        in_use = error.errno in (errno.EBUSY, errno.EINVAL, errno.E2BIG)
        advice = ": another program's device of that name; stop it or delete the device" if in_use else ""
        raise KernelError(f"TUN device {name}: {error.strerror}{advice}", error.errno or 0) from error
    return FileIO(fd, "r+b")


def configure(name: str, mtu: int, address: Address, network: Network) -> None:
    """Bring `name` up with `mtu`, `address`/32 as its only IPv4 address and the route to `network`.

    What is right already is left alone, so that calling it again wakes nobody; addresses and our routes
    that belong to an earlier lease or network go. flannel sets up the same (udp_network_amd64.go:
    configureIface), less accept_local: the relay's ICMP answers come in on this device from its own
    address, and the kernel would drop them as martians. Raises DeviceMissing, KernelError.
    """
    _accept_local(name)
    with IPRoute() as ipr:
        index = _index(ipr, name)
        try:
            set_up(ipr, index, mtu)
            _set_address(ipr, index, f"{address}/32")
            _set_route(ipr, index, str(network))
        except NetlinkError as error:
            raise KernelError(f"TUN device {name}: {error}", error.code) from error


def set_up(ipr: IPRoute, index: int, mtu: int) -> None:
    """Bring the device up with this MTU; one that is so already is left alone. Raises NetlinkError."""
    link = ipr.get_links(index)[0]
    if link.get_attr("IFLA_MTU") != mtu or not link["flags"] & _IFF_UP:
        ipr.link("set", index=index, mtu=mtu, state="up")


def _set_address(ipr: IPRoute, index: int, wanted: str) -> None:
    found = {
        f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
        for address in ipr.get_addr(index=index, family=AF_INET)
    }
    if wanted not in found:
        ipr.addr("add", index=index, address=wanted)
    for stale in found - {wanted}:
        ipr.addr("del", index=index, address=stale)


def _set_route(ipr: IPRoute, index: int, wanted: str) -> None:
    found = {
        f"{route.get_attr('RTA_DST')}/{route['dst_len']}"
        for route in ipr.get_routes(oif=index, family=AF_INET, proto=ROUTE_PROTOCOL)
    }
    if wanted not in found:
        ipr.route("replace", dst=wanted, oif=index, proto=ROUTE_PROTOCOL, scope=0)
    for stale in found - {wanted}:
        ipr.route("del", dst=stale, oif=index, proto=ROUTE_PROTOCOL)


def _accept_local(name: str) -> None:
    path = Path(f"/proc/sys/net/ipv4/conf/{name}/accept_local")
    try:
        if path.read_text().strip() != "1":
            path.write_text("1")
    except FileNotFoundError as error:
        raise DeviceMissing(f"TUN device {name} is not there", errno.ENODEV) from error
    except OSError as error:
        raise KernelError(f"{path}: {error.strerror}", error.errno or 0) from error


def delete(name: str) -> bool:
    """Remove the device with its address and routes; False when there was none. Raises KernelError."""
    with IPRoute() as ipr:
        try:
            ipr.link("del", index=_index(ipr, name))
        except DeviceMissing:
            return False
        except NetlinkError as error:
            raise KernelError(f"TUN device {name} cannot be deleted: {error}", error.code) from error
    return True


def _index(ipr: IPRoute, name: str) -> int:
    found = ipr.link_lookup(ifname=name)
    if not found:
        raise DeviceMissing(f"TUN device {name} is not there", errno.ENODEV)
    return int(found[0])
