"""A node as stock flanneld leaves it, made with ip and bridge: the other side of interoperability tests.

It does by hand what flannel's vxlan and host-gw backends do through netlink (flannel
pkg/backend/vxlan/device.go, vxlan_network.go, hostgw.go), and nothing that flannel-ebpf does.
"""

from __future__ import annotations

import json
from typing import Any

from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.lab.cluster import Lab
from flannel_ebpf.lab.node import Node

VNI = 1
PORT = 8472
DEVICES = {Family.V4: f"flannel.{VNI}", Family.V6: f"flannel-v6.{VNI}"}
DEVICE = DEVICES[Family.V4]
OVERHEAD = 50
"""Outer IPv4, UDP, VXLAN and inner Ethernet headers, in bytes; flannel takes it for IPv6 too."""

_PUBLIC_IP = {Family.V4: "PublicIP", Family.V6: "PublicIPv6"}
_DATA = {Family.V4: "BackendData", Family.V6: "BackendV6Data"}
_NETWORK = {Family.V4: "FLANNEL_NETWORK", Family.V6: "FLANNEL_IPV6_NETWORK"}
_SUBNET = {Family.V4: "FLANNEL_SUBNET", Family.V6: "FLANNEL_IPV6_SUBNET"}


class StockFlannel:
    """flanneld on one node of a lab that was built without daemons, or whose daemon was stopped.

    `subnets` are one of each family of the lab.
    """

    def __init__(self, lab: Lab, node: Node, *subnets: Network) -> None:
        self.lab = lab
        self.node = node
        self.subnets = {family_of(subnet): subnet for subnet in subnets}
        self.vxlan = lab.spec.backend == "vxlan"

    def start(self) -> None:
        """Do what flanneld does at start: the devices, subnet.env, and the lease in etcd."""
        if self.vxlan:
            for family in self.subnets:
                self._make_device(family)
        self._write_subnet_file()
        self.publish()

    def publish(self) -> None:
        """Put this node's lease into etcd, byte for byte as flanneld writes it, for 24 h."""
        value: dict[str, Any] = {"PublicIP": None, "PublicIPv6": None, "BackendType": self.lab.spec.backend}
        for family in self.subnets:
            value[_PUBLIC_IP[family]] = str(self.node.at(family))
            if self.vxlan:
                value[_DATA[family]] = {"VNI": VNI, "VtepMAC": self.mac_of(family)}
        grant = self.lab.etcdctl("lease", "grant", "86400").split()[1]
        key = "&".join(str(subnet).replace("/", "-") for subnet in self.subnets.values())
        path = f"{self.lab.spec.etcd_prefix}/subnets/{key}"
        self.lab.etcdctl("put", f"--lease={grant}", path, json.dumps(value, separators=(",", ":")))

    def sync(self) -> None:
        """Program every peer that etcd knows now, as flanneld does at each watch event."""
        for subnet, value in self.lab.leases().items():
            family = family_of(subnet)
            if subnet != self.subnets.get(family) and value.get("BackendType") == self.lab.spec.backend:
                self.add_peer(subnet, value[_PUBLIC_IP[family]], value.get(_DATA[family]))

    def add_peer(self, subnet: Network, public_ip: str, data: Any) -> None:
        """Program one peer: neighbour, FDB entry and onlink route, or for host-gw the plain route."""
        if not self.vxlan:
            self.node.run(["ip", "route", "replace", str(subnet), "via", public_ip, "dev", "eth0"])
            return
        vtep, mac, device = str(subnet.network_address), data["VtepMAC"], DEVICES[family_of(subnet)]
        for line in (
            f"ip neigh replace {vtep} lladdr {mac} dev {device} nud permanent",
            f"bridge fdb replace {mac} dev {device} self permanent dst {public_ip}",
            f"ip route replace {subnet} via {vtep} dev {device} onlink proto boot",
        ):
            self.node.run(line.split())

    @property
    def mac(self) -> str:
        """The address of flannel.1, which the lease publishes as VtepMAC."""
        return self.mac_of(Family.V4)

    def mac_of(self, family: Family) -> str:
        """Return the address of a family's device."""
        return str(self._link(DEVICES[family])["address"])

    @property
    def mtu(self) -> int:
        """What flanneld writes as FLANNEL_MTU: the uplink's, less the tunnel's overhead."""
        return int(self._link("eth0")["mtu"]) - (OVERHEAD if self.vxlan else 0)

    def _link(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.node.run(["ip", "-json", "link", "show", "dev", name]).stdout
        )[0]
        return found

    def _make_device(self, family: Family) -> None:
        """Make flannel.1 or flannel-v6.1; an existing one is reused, as flanneld does."""
        device, subnet = DEVICES[family], self.subnets[family]
        exists = self.node.run(["ip", "link", "show", "dev", device], check=False).returncode == 0
        if not exists:
            vxlan = f"vxlan id {VNI} local {self.node.at(family)} dev eth0 dstport {PORT} nolearning"
            self.node.run(f"ip link add {device} mtu {self.mtu} type {vxlan}".split())
        self.node.run(["sysctl", "-qw", f"net.ipv6.conf.{device.replace('.', '/')}.accept_ra=0"])
        own = f"{subnet.network_address}/{family.bits}"
        self.node.run(["ip", "addr", "replace", own, "dev", device])
        self.node.run(["ip", "link", "set", device, "up"])

    def _write_subnet_file(self) -> None:
        networks = self.lab.spec.networks
        lines = [
            line
            for family, subnet in self.subnets.items()
            for line in (
                f"{_NETWORK[family]}={networks[family]}",
                f"{_SUBNET[family]}={subnet[1]}/{subnet.prefixlen}",
            )
        ]
        text = [*lines, f"FLANNEL_MTU={self.mtu}", "FLANNEL_IPMASQ=false"]
        self.node.subnet_file.write_text("".join(f"{line}\n" for line in text))
