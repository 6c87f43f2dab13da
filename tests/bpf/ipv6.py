"""A node of IPv6, frames for it, and the kernel's own vxlan path with the same addresses."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network
from pathlib import Path

from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.vxlan import VXLAN as VXLAN_HEADER
from scapy.packet import Packet, Raw

from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi, enums
from tests.bpf import node
from tests.bpf.frames import PAYLOAD
from tests.bpf.kernel_path import KernelNode
from tests.bpf.node import GATEWAY_MAC, NEXT_HOP_MAC, POD_MAC, UPLINK_MAC, Remote

NETWORK = IPv6Network("fd10:1::/48")


def remote(number: int) -> Remote:
    return Remote(
        IPv6Address(f"2001:db8::{number:x}"),
        Mac.parse(f"02:f6:00:00:00:{number:02x}"),
        IPv6Network(f"fd10:1:0:{number:x}::/64"),
        IPv6Address(f"fd10:1:0:{number:x}::20"),
    )


OWN, PEER, STRANGER = remote(1), remote(2), remote(9)
POD = OWN.pod
OTHER_POD = OWN.pod + 1
OUTSIDE = IPv6Address("2001:db8:ffff::1")
GROUP_MAC = "33:33:00:00:00:16"
"""Where MLD reports go."""

VXLAN = replace(
    node.VXLAN,
    public_ip=OWN.public_ip,
    network=NETWORK.network_address,
    network_mask=NETWORK.netmask,
    subnet=OWN.subnet.network_address,
    subnet_mask=OWN.subnet.netmask,
    vtep_mac=OWN.vtep,
    peer_len=64,
)
FLOWS = replace(VXLAN, fastpath=enums.Fastpath.FLOWS)
DIRECT = replace(VXLAN, backend=enums.Mode.DIRECT, vtep_mac=abi.NO_MAC)
COUNT_ONLY = replace(VXLAN, source_check=enums.Check.COUNT)


class Node6(node.Node):
    """Programs of IPv6 loaded with one configuration."""

    network = NETWORK
    ends = (OWN, PEER)


def l4(kind: str = "udp", *, sport: int = 4000, dport: int = 5000, payload: bytes = PAYLOAD) -> Packet:
    """Return an L4 header and payload: udp, tcp (or tcp:FLAGS), ping, pong."""
    name, _, flags = kind.partition(":")
    if name == "udp":
        return UDP(sport=sport, dport=dport) / Raw(payload)
    if name == "tcp":
        return TCP(sport=sport, dport=dport, flags=flags or "A", seq=7, ack=9) / Raw(payload)
    echo = ICMPv6EchoRequest if name == "ping" else ICMPv6EchoReply
    return echo(id=sport, seq=1, data=payload)


def packet(src: IPv6Address, dst: IPv6Address, body: Packet | None = None, **ip: object) -> Packet:
    return IPv6(src=str(src), dst=str(dst), **ip) / (l4() if body is None else body)


def from_pod(
    body: Packet | None = None,
    *,
    src: IPv6Address = POD,
    dst: IPv6Address = PEER.pod,
    gateway: Mac | str = GATEWAY_MAC,
    **ip: object,
) -> Packet:
    """Return a frame as a pod sends it to its gateway."""
    return Ether(src=str(POD_MAC), dst=str(gateway)) / packet(src, dst, body, **ip)


def on_wire(payload: Packet) -> Packet:
    """Return a frame as it reaches the uplink."""
    return Ether(src=str(NEXT_HOP_MAC), dst=str(UPLINK_MAC)) / payload


def tunnel(
    inner: Packet | None = None,
    *,
    sender: Remote = PEER,
    extensions: Packet | None = None,
    vni: int = 1,
    inner_dst: Mac = OWN.vtep,
    udp: dict[str, int] | None = None,
    **outer: object,
) -> Packet:
    """Return a tunnel packet as `sender` emits it, with `extensions` between outer IPv6 and UDP."""
    inner = packet(sender.pod, POD) if inner is None else inner
    ethernet = Ether(src=str(sender.vtep), dst=str(inner_dst))
    header = UDP(**{"sport": 40000, "dport": 8472} | (udp or {}))
    wrapped = header / VXLAN_HEADER(vni=vni, flags=0x08) / ethernet / inner
    return on_wire(
        IPv6(src=str(sender.public_ip), dst=str(OWN.public_ip), **outer)
        / (wrapped if extensions is None else extensions / wrapped)
    )


class KernelNode6(KernelNode):
    """Built in the calling thread's network namespace, which must be new."""

    setup = f"""
link add up0 address {UPLINK_MAC} mtu 1500 type veth peer name wire0 address {NEXT_HOP_MAC}
link add pod0 address {GATEWAY_MAC} mtu 1430 type veth peer name inpod0 address {POD_MAC}
link set up0 up
link set wire0 up
link set pod0 up
link set inpod0 up
address add {OWN.public_ip}/64 dev up0 nodad
link add flannel-v6.1 address {OWN.vtep} mtu 1430 type vxlan id 1 local {OWN.public_ip} dev up0 dstport 8472 \
nolearning
link set flannel-v6.1 up
address add {OWN.subnet.network_address}/128 dev flannel-v6.1 nodad
address add {OWN.subnet.network_address + 1}/64 dev pod0 nodad
neighbour add {PEER.public_ip} lladdr {NEXT_HOP_MAC} dev up0 nud permanent
neighbour add {POD} lladdr {POD_MAC} dev pod0 nud permanent
neighbour add {PEER.subnet.network_address} lladdr {PEER.vtep} dev flannel-v6.1 nud permanent
route add {PEER.subnet} via {PEER.subnet.network_address} dev flannel-v6.1 onlink
"""
    station = (str(PEER.vtep), "flannel-v6.1", str(PEER.public_ip))

    def __init__(self) -> None:
        super().__init__()
        # else the uplink would leave checksums to the far end, and none could be compared
        subprocess.run(["ethtool", "-K", "up0", "tx", "off"], check=True, capture_output=True)

    @staticmethod
    def sysctls() -> dict[str, str]:
        names = ("accept_ra", "accept_dad", "router_solicitations")
        quiet = {f"ipv6/conf/default/{name}": "0" for name in names}
        return {**quiet, "ipv6/conf/all/forwarding": "1"}


def wrong_checksums() -> int:
    """Return how many UDP datagrams of IPv6 this namespace has thrown away for their checksum."""
    for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
        name, value = line.split()
        if name == "Udp6InCsumErrors":
            return int(value)
    raise AssertionError("the kernel does not count")
