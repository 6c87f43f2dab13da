"""A pod: a namespace behind its node's bridge, wired as the CNI bridge plugin does it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Interface

from flannel_ebpf.lab import netns
from flannel_ebpf.lab.host import Host

BRIDGE = "cni0"


class Pod(Host):
    """One pod; `veth` is the host side of its link, in the node's namespace."""

    def __init__(self, name: str, ns: str, ip: IPv4Address) -> None:
        super().__init__(name, ns, ip)
        self.veth = f"veth{name}"


def make_bridge(node_ns: str, gateway: IPv4Interface, mtu: int) -> None:
    """Make `cni0` in the node's namespace with the subnet's first address, unless it is there.

    It has a MAC of its own, as the CNI plugin sees to: a bridge without one takes the lowest of its ports',
    and so another one whenever pods come and go.
    """
    if netns.has_link(node_ns, BRIDGE):
        return
    mac = f"0a:58:{gateway.ip.packed.hex(':')}"
    netns.configure(
        node_ns,
        [
            f"link add {BRIDGE} address {mac} mtu {mtu} type bridge",
            f"addr add {gateway} brd + dev {BRIDGE}",
            f"link set {BRIDGE} up",
        ],
    )


def plug(pod: Pod, node_ns: str, gateway: IPv4Interface, mtu: int) -> None:
    """Give `pod`, whose namespace exists, its `eth0`, address and default route.

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
    netns.configure(
        pod.ns,
        [
            f"addr add {pod.ip}/{gateway.network.prefixlen} brd + dev eth0",
            "link set eth0 up",
            f"route add default via {gateway.ip}",
        ],
    )
