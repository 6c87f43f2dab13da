"""A pod: a namespace behind its node's bridge, wired as the CNI bridge plugin does it."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_interface

from flannel_ebpf.base.family import Address, Family, Interface, family_of
from flannel_ebpf.lab import netns
from flannel_ebpf.lab.host import Host

BRIDGE = "cni0"


class Pod(Host):
    """One pod; `veth` is the host side of its link, in the node's namespace."""

    def __init__(self, name: str, ns: str, *addresses: Address) -> None:
        super().__init__(name, ns, *addresses)
        self.veth = f"veth{name}"


def make_bridge(node_ns: str, gateways: Sequence[Interface], mtu: int) -> None:
    """Make `cni0` in the node's namespace with each subnet's first address, unless it is there.

    It has a MAC of its own, as the CNI plugin sees to: a bridge without one takes the lowest of its ports',
    and so another one whenever pods come and go.
    """
    if netns.has_link(node_ns, BRIDGE):
        return
    mac = f"0a:58:{gateways[0].ip.packed[-4:].hex(':')}"
    netns.configure(
        node_ns,
        [
            f"link add {BRIDGE} address {mac} mtu {mtu} type bridge",
            *(f"addr add {gateway} {broadcast(gateway)} dev {BRIDGE}" for gateway in gateways),
            f"link set {BRIDGE} up",
        ],
    )


def broadcast(address: Interface) -> str:
    """Return what `ip addr add` is told of a broadcast address, which IPv6 has not."""
    return "brd +" if family_of(address) is Family.V4 else ""


def plug(pod: Pod, node_ns: str, gateways: Sequence[Interface], mtu: int) -> None:
    """Give `pod`, whose namespace exists, its `eth0`, addresses and default routes.

    The bridge port has hairpin on, as in the conflist that flannel ships.
    """
    netns.configure(
        node_ns,
        [
            f"link add {pod.veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {pod.ns}",
            f"link set {pod.veth} master {BRIDGE} up",
            f"link set {pod.veth} type bridge_slave hairpin on",
        ],
    )
    addresses = [ip_interface((pod.at(family_of(one)), one.network.prefixlen)) for one in gateways]
    netns.configure(
        pod.ns,
        [
            *(f"addr add {own} {broadcast(own)} dev eth0" for own in addresses),
            "link set eth0 up",
            *(f"route add default via {gateway.ip}" for gateway in gateways),
        ],
    )
