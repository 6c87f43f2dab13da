"""A node as stock flanneld leaves it, made with ip and bridge: the other side of interoperability tests.

It does by hand what flannel's vxlan and host-gw backends do through netlink (flannel
pkg/backend/vxlan/device.go, vxlan_network.go, hostgw.go), and nothing that flannel-ebpf does.
"""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import Any

from flannel_ebpf.lab.cluster import Lab
from flannel_ebpf.lab.node import Node

VNI = 1
PORT = 8472
DEVICE = f"flannel.{VNI}"
OVERHEAD = 50
"""Outer IPv4, UDP and VXLAN headers and the inner Ethernet header, in bytes."""


class StockFlannel:
    """flanneld on one node of a lab that was built without daemons, or whose daemon was stopped."""

    def __init__(self, lab: Lab, node: Node, subnet: IPv4Network) -> None:
        self.lab = lab
        self.node = node
        self.subnet = subnet
        self.vxlan = lab.spec.backend == "vxlan"

    def start(self) -> None:
        """Do what flanneld does at start: the device, subnet.env, and the lease in etcd."""
        if self.vxlan:
            self._make_device()
        self._write_subnet_file()
        self.publish()

    def publish(self) -> None:
        """Put this node's lease into etcd, byte for byte as flanneld writes it, for 24 h."""
        value: dict[str, Any] = {
            "PublicIP": str(self.node.ip),
            "PublicIPv6": None,
            "BackendType": self.lab.spec.backend,
        }
        if self.vxlan:
            value["BackendData"] = {"VNI": VNI, "VtepMAC": self.mac}
        grant = self.lab.etcdctl("lease", "grant", "86400").split()[1]
        key = f"{self.lab.spec.etcd_prefix}/subnets/{str(self.subnet).replace('/', '-')}"
        self.lab.etcdctl("put", f"--lease={grant}", key, json.dumps(value, separators=(",", ":")))

    def sync(self) -> None:
        """Program every peer that etcd knows now, as flanneld does at each watch event."""
        for subnet, value in self.lab.leases().items():
            if subnet != self.subnet and value.get("BackendType") == self.lab.spec.backend:
                self.add_peer(subnet, value["PublicIP"], value.get("BackendData"))

    def add_peer(self, subnet: IPv4Network, public_ip: str, data: Any) -> None:
        """Program one peer: neighbour, FDB entry and onlink route, or for host-gw the plain route."""
        if not self.vxlan:
            self.node.run(["ip", "route", "replace", str(subnet), "via", public_ip, "dev", "eth0"])
            return
        vtep, mac = str(subnet.network_address), data["VtepMAC"]
        for line in (
            f"ip neigh replace {vtep} lladdr {mac} dev {DEVICE} nud permanent",
            f"bridge fdb replace {mac} dev {DEVICE} self permanent dst {public_ip}",
            f"ip route replace {subnet} via {vtep} dev {DEVICE} onlink proto boot",
        ):
            self.node.run(line.split())

    @property
    def mac(self) -> str:
        """The address of flannel.1, which the lease publishes as VtepMAC."""
        link = json.loads(self.node.run(["ip", "-json", "link", "show", "dev", DEVICE]).stdout)
        return str(link[0]["address"])

    @property
    def mtu(self) -> int:
        """What flanneld writes as FLANNEL_MTU: the uplink's, less the tunnel's overhead."""
        link = json.loads(self.node.run(["ip", "-json", "link", "show", "dev", "eth0"]).stdout)
        return int(link[0]["mtu"]) - (OVERHEAD if self.vxlan else 0)

    def _make_device(self) -> None:
        """Make flannel.1; an existing one is reused, as flanneld does."""
        exists = self.node.run(["ip", "link", "show", "dev", DEVICE], check=False).returncode == 0
        if not exists:
            vxlan = f"vxlan id {VNI} local {self.node.ip} dev eth0 dstport {PORT} nolearning"
            self.node.run(f"ip link add {DEVICE} mtu {self.mtu} type {vxlan}".split())
        self.node.run(["sysctl", "-qw", f"net.ipv6.conf.{DEVICE.replace('.', '/')}.accept_ra=0"])
        self.node.run(["ip", "addr", "replace", f"{self.subnet.network_address}/32", "dev", DEVICE])
        self.node.run(["ip", "link", "set", DEVICE, "up"])

    def _write_subnet_file(self) -> None:
        self.node.subnet_file.write_text(
            f"FLANNEL_NETWORK={self.lab.spec.network}\n"
            f"FLANNEL_SUBNET={self.subnet[1]}/{self.subnet.prefixlen}\n"
            f"FLANNEL_MTU={self.mtu}\n"
            "FLANNEL_IPMASQ=false\n"
        )
