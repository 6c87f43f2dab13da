"""Make the vxlan device exactly as flannel does (pkg/backend/vxlan/device.go)."""

from __future__ import annotations

import errno

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Family, family_of
from flannel_ebpf.desired.objects import VxlanLink
from flannel_ebpf.kernel.netlink.iproute import IPRoute, NetlinkError
from flannel_ebpf.kernel.netlink.links import find_link
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket


def put(ip: IPRoute, netlink: RouteSocket, want: VxlanLink, old: VxlanLink | None) -> None:
    """Make the device so and set it up; MTU, MAC, local address and up are changed in place.

    All else makes it anew, which takes its routes, neighbours and FDB along.

    A vxlan device of that name that cannot be ours is replaced, as flannel does; any other kind is left
    alone. Raises KernelError, NetlinkError.
    """
    if old is not None and _in_place(want, old) and _moved(ip, netlink, want, old):
        index = _index(netlink, want.name)
        ip.link("set", index=index, mtu=want.mtu, address=str(want.mac))
    else:
        _remove_former(ip, netlink, want.name)
        _create(ip, want)
    index = _index(netlink, want.name)
    ip.link("set", index=index, state="up")
    _settle_mac(ip, netlink, want)


def _in_place(want: VxlanLink, old: VxlanLink) -> bool:
    return _fixed(want) == _fixed(old)


def _fixed(link: VxlanLink) -> tuple[object, ...]:
    return (link.name, link.vni, link.port, link.parent, link.learning, link.gbp, link.local.version)


def _moved(ip: IPRoute, netlink: RouteSocket, want: VxlanLink, old: VxlanLink) -> bool:
    """Give the device another local address; false when the kernel will not, as for one that had none."""
    if want.local == old.local:
        return True
    try:
        ip.link("set", index=_index(netlink, want.name), kind="vxlan", **_local(want))
    except NetlinkError as error:
        if error.code not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return False
    return True


def _create(ip: IPRoute, want: VxlanLink) -> None:
    flags = {"vxlan_gbp": True} if want.gbp else {}
    ip.link(
        "add",
        ifname=want.name,
        kind="vxlan",
        address=str(want.mac),
        mtu=want.mtu,
        vxlan_id=want.vni,
        vxlan_link=want.parent,
        **_local(want),
        vxlan_port=want.port,
        vxlan_learning=int(want.learning),
        **flags,
    )


def _local(want: VxlanLink) -> dict[str, str]:
    """Return the local address as the library wants it; it also makes the device one of its family."""
    name = "vxlan_local" if family_of(want.local) is Family.V4 else "vxlan_local6"
    return {name: str(want.local)}


def _remove_former(ip: IPRoute, netlink: RouteSocket, name: str) -> None:
    former = find_link(netlink, name)
    if former is None:
        return
    if former.kind != "vxlan":
        kind = former.kind or "physical"
        raise KernelError(f"device {name!r} is a {kind} device: rename or remove it", errno.EEXIST)
    try:
        ip.link("del", index=former.index)
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def _settle_mac(ip: IPRoute, netlink: RouteSocket, want: VxlanLink) -> None:
    """Put the MAC back if somebody changed it: udev's MACAddressPolicy races with us (flannel #1795)."""
    link = find_link(netlink, want.name)
    if link is not None and link.mac != want.mac.octets:
        ip.link("set", index=link.index, address=str(want.mac))
        link = find_link(netlink, want.name)
    if link is None or link.mac != want.mac.octets:
        raise KernelError(f"device {want.name!r} does not keep MAC {want.mac}: is a udev rule changing it?")


def _index(netlink: RouteSocket, name: str) -> int:
    link = find_link(netlink, name)
    if link is None:
        raise KernelError(f"device {name!r} went away while it was set up", errno.ENODEV)
    return link.index
