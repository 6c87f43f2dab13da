"""Ports that make a pods' bridge ask for room in front of packets: see objects.HeadroomPort."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress

from flannel_ebpf.base.family import Address, Family, family_of
from flannel_ebpf.desired.objects import HeadroomPort, Scope
from flannel_ebpf.kernel.netlink.iproute import IPRoute, NetlinkError
from flannel_ebpf.kernel.netlink.links import Link, vxlan_link

_DISCARD = 9
"""UDP port of the discard protocol (RFC 863): the device is never up, so no socket is ever opened."""

_LARGEST_MTU = 65535
"""A bridge takes the smallest MTU of its ports (br_mtu_auto_adjust): this one must never be it."""

_LAST_MAC = "fe:ff:ff:ff:ff:fe"
"""A bridge takes the lowest MAC of its ports (br_stp_recalculate_bridge_id): this one must never be it."""


def read_ports(links: Iterable[Link], scope: Scope) -> Iterator[HeadroomPort]:
    """Yield the ports of this network among `links`.

    Ours is a vxlan device to the discard port whose local address is the network's own: no real one's is.
    """
    for link in links:
        device = vxlan_link(link)
        if device and (device.local, device.port) == (_local(scope), _DISCARD):
            yield HeadroomPort(link.name, link.master, link.up)


def put_port(ip: IPRoute, want: HeadroomPort, old: HeadroomPort | None, scope: Scope) -> None:
    """Make the port; `old`, ours that stands in another bridge or is up, makes way. Raises NetlinkError."""
    if old is not None:
        delete_port(ip, old)
    local = "vxlan_local" if family_of(scope.network) is Family.V4 else "vxlan_local6"
    ip.link("get", index=want.bridge)  # ENODEV when it is gone; the kernel says EINVAL to a master that is
    ip.link(
        "add",
        ifname=want.name,
        kind="vxlan",
        address=_LAST_MAC,
        mtu=_LARGEST_MTU,
        master=want.bridge,
        vxlan_id=want.bridge & 0xFFFFFF,
        **{local: str(_local(scope))},
        vxlan_port=_DISCARD,
        vxlan_learning=0,
    )
    with suppress(NetlinkError):  # no more than a hint for whoever looks with `ip link`
        index = ip.link_lookup(ifname=want.name)[0]
        ip.link("set", index=index, ifalias="flannel-ebpf: never up, gives pods' packets headroom")


def delete_port(ip: IPRoute, there: HeadroomPort) -> None:
    """Remove the port if it is there. Raises NetlinkError."""
    for index in ip.link_lookup(ifname=there.name):
        ip.link("del", index=index)


def _local(scope: Scope) -> Address:
    return scope.network.network_address
