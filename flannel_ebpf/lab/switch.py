"""The underlay: one bridge in the switch namespace, one uplink `eth0` for each node."""

from __future__ import annotations

from flannel_ebpf.lab import netns
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.spec import ETCD_IP, UNDERLAY, LabSpec, node_ip

BRIDGE = "br0"


def wire(spec: LabSpec) -> None:
    """Make the switch and the nodes of `spec`: namespaces, links, underlay addresses.

    The links are made inside the namespaces, so that none of them is ever seen on the host. A node's
    default route leads to the switch, which forwards nothing: packets for nobody end there.
    """
    nodes = {name: f"{spec.name}-{name}" for name in spec.node_names}
    netns.create([spec.switch_ns, *nodes.values()])
    lines = [
        f"link add {BRIDGE} type bridge",
        f"addr add {ETCD_IP}/{UNDERLAY.prefixlen} brd + dev {BRIDGE}",
        f"link set {BRIDGE} up",
    ]
    for name, ns in nodes.items():
        lines += [
            f"link add {name} type veth peer name eth0 netns {ns}",
            f"link set {name} master {BRIDGE} up",
        ]
    netns.configure(spec.switch_ns, lines)
    for name, ns in nodes.items():
        netns.configure(
            ns,
            [
                f"addr add {node_ip(name)}/{UNDERLAY.prefixlen} brd + dev eth0",
                "link set eth0 up",
                f"route add default via {ETCD_IP}",
            ],
        )
        run(netns.inside(ns, ["sysctl", "-qw", "net.ipv4.ip_forward=1"]))
