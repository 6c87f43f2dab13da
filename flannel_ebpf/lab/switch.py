"""The underlay: one bridge in the switch namespace, one uplink `eth0` for each node."""

from __future__ import annotations

from ipaddress import ip_interface

from flannel_ebpf.base.family import Address, Family, family_of
from flannel_ebpf.lab import netns
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.pod import broadcast
from flannel_ebpf.lab.spec import SWITCH, UNDERLAYS, LabSpec, node_ip

BRIDGE = "br0"

_FORWARDING = {Family.V4: "net.ipv4.ip_forward", Family.V6: "net.ipv6.conf.all.forwarding"}


def wire(spec: LabSpec) -> None:
    """Make the switch and the nodes of `spec`: namespaces, links, underlay addresses.

    The links are made inside the namespaces, so that none of them is ever seen on the host. A node's
    default route leads to the switch, which forwards nothing: packets for nobody end there.
    """
    nodes = {name: f"{spec.name}-{name}" for name in spec.node_names}
    families = sorted({Family.V4, *spec.families})  # etcd has an IPv4 address in every lab
    gateways = [UNDERLAYS[family][SWITCH] for family in families]
    netns.create([spec.switch_ns, *nodes.values()])
    if Family.V6 in families:
        for ns in (spec.switch_ns, *nodes.values()):
            netns.trust_addresses(ns)
    lines = [
        f"link add {BRIDGE} type bridge",
        *(_own(gateway, BRIDGE) for gateway in gateways),
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
                *(_own(node_ip(name, family), "eth0") for family in families),
                "link set eth0 up",
                *(f"route add default via {gateway}" for gateway in gateways),
            ],
        )
        forwarding = [_FORWARDING[family] for family in families]
        run(netns.inside(ns, ["sysctl", "-qw", *(f"{name}=1" for name in forwarding)]))


def _own(address: Address, device: str) -> str:
    interface = ip_interface((address, UNDERLAYS[family_of(address)].prefixlen))
    return f"addr add {interface} {broadcast(interface)} dev {device}"
