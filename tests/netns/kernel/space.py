"""For tests of the kernel edges: `ip`, the objects of a node and of its peers, tiny programs."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_interface, ip_network

from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.base.model import Mac
from flannel_ebpf.desired.objects import (
    FdbEntry,
    LinkAddress,
    Neighbour,
    Object,
    Route,
    Scope,
    Sysctl,
    VxlanLink,
)
from flannel_ebpf.kernel.bpf import Program
from flannel_ebpf.kernel.network import KernelNetwork

_PASS = {3: 0, 6: 2}  # BPF_PROG_TYPE_SCHED_CLS: TC_ACT_OK; BPF_PROG_TYPE_XDP: XDP_PASS
_libc = ctypes.CDLL(None, use_errno=True)

NETWORK = IPv4Network("10.1.0.0/16")
SUBNET = IPv4Network("10.1.5.0/24")
PUBLIC_IP = IPv4Address("192.168.64.5")
OVERLAY = "flannel.1"
OWN_MAC = Mac.parse("02:00:00:00:00:05")


def run(*commands: str) -> str:
    """Run commands without a shell; return the last one's output."""
    output = ""
    for command in commands:
        done = subprocess.run(command.split(), capture_output=True, text=True, check=False, timeout=30)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        output = done.stdout
    return output


def index_of(name: str) -> int:
    return int(run(f"ip -o link show {name}").split(":")[0])


def scope(uplink: int, overlay: str = OVERLAY, network: IPv4Network = NETWORK) -> Scope:
    return Scope(network, SUBNET, overlay, uplink)


@dataclass(frozen=True)
class Place:
    """A node's part in one family, and its peers."""

    network: Network
    subnet: Network
    public_ip: Address
    overlay: str
    mtu: int
    peers: Address
    """Public address of peer 0."""

    def scope(self, uplink: int) -> Scope:
        return Scope(self.network, self.subnet, self.overlay, uplink)

    def vxlan(self, uplink: int) -> VxlanLink:
        return VxlanLink(self.overlay, 1, 8472, self.public_ip, uplink, self.mtu, OWN_MAC)

    def node(self, uplink: int) -> set[Object]:
        """Return what a node without peers holds."""
        address = ip_interface((self.subnet.network_address, self.subnet.max_prefixlen))
        accept_ra = Sysctl(f"net/ipv6/conf/{self.overlay}/accept_ra", "0")
        return {self.vxlan(uplink), LinkAddress(self.overlay, address), accept_ra}

    def peer(self, number: int, network: Network | None = None) -> set[Object]:
        """Return the three objects of one vxlan peer; numbers count subnets from the network's start."""
        first, length = (network or self.network).network_address, self.subnet.prefixlen
        subnet = ip_network((int(first) + (number << first.max_prefixlen - length), length))
        if subnet.version != first.version:  # a small number that ip_network takes for IPv4
            raise ValueError(number)
        mac = Mac(b"\2\1" + number.to_bytes(4, "big"))
        return {
            Neighbour(self.overlay, subnet.network_address, mac),
            FdbEntry(self.overlay, mac, self.peers + number),
            Route(subnet, subnet.network_address, self.overlay, onlink=True),
        }


IPV4 = Place(NETWORK, SUBNET, PUBLIC_IP, OVERLAY, 1450, IPv4Address("172.16.0.0"))
IPV6 = Place(
    IPv6Network("fc00::/48"),
    IPv6Network("fc00:0:0:5::/64"),
    IPv6Address("fd00::5"),
    "flannel-v6.1",
    1430,
    IPv6Address("fd16::"),
)
vxlan, node, peer = IPV4.vxlan, IPV4.node, IPV4.peer


def named(*programs: Program) -> Callable[[int], str]:
    """Return what knows these programs as ours, by id."""
    names = {program.info().id: program.name for program in programs}
    return lambda number: names.get(number, "")


def there(
    kernel: KernelNetwork, where: Scope, *, wanted: Mapping[Network, Address | None] | None = None
) -> set[Object]:
    """Return this network's kernel path as it is now, with the sysctl of its device."""
    named_so = where.overlay in (IPV4.overlay, IPV6.overlay)
    sysctls = [f"net/ipv6/conf/{where.overlay}/accept_ra"] if named_so else []
    found = kernel.read(kernel.look(), where, wanted=wanted)
    return {*found, *kernel.sysctls(sysctls)}


def hooked(kernel: KernelNetwork, where: Scope, name_of: Callable[[int], str] = lambda _: "") -> set[Object]:
    """Return what stands on hooks now; `name_of` as of KernelNetwork.hooks.read."""
    return kernel.hooks.read(kernel.look(), where, name_of)


class TinyProgram(Program):
    """A program that lets every packet pass."""

    @classmethod
    def make(cls, kind: int = 3, name: str = "tiny") -> Program:
        """Load it: kind 3 for tc, 6 for XDP."""
        code = ctypes.create_string_buffer(struct.pack("=BBhiBBhi", 0xB7, 0, 0, _PASS[kind], 0x95, 0, 0, 0))
        gpl = ctypes.create_string_buffer(b"GPL")
        attr = struct.pack(
            "=IIQQIIQII16s",
            *(kind, 2, ctypes.addressof(code), ctypes.addressof(gpl), 0, 0, 0, 0, 0, name.encode()),
        )
        fd = _libc.syscall(321, 5, attr, len(attr))
        assert fd >= 0, os.strerror(ctypes.get_errno())
        return cls(fd, name)
