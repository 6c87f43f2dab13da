"""What `probe` needs to know of this node and its peers: of the report and the kernel's tables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.model import Mac
from flannel_ebpf.commands.diagnose.console import NothingHereError
from flannel_ebpf.commands.diagnose.networks import Here
from flannel_ebpf.relay.peers import decode


@dataclass(frozen=True, slots=True)
class Node:
    """This node as packets see it. No vxlan device: `vni` 0 and `mac` None; no tunnel: `port` 0."""

    network: IPv4Network
    backend: str
    uplink: str
    public_ip: IPv4Address
    address: IPv4Address
    mtu: int
    port: int = 0
    vni: int = 0
    mac: Mac | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A peer: the subnet, where it is reached, and the address in the overlay that answers for it."""

    subnet: IPv4Network
    public_ip: IPv4Address
    address: IPv4Address
    mac: Mac | None = None


def ip(*arguments: str, tool: str = "ip") -> list[dict[str, Any]]:
    """Return what iproute2 says as JSON; raises KernelError with its words."""
    done = subprocess.run([tool, "-json", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def this_node(here: Here) -> Node:
    """Return this node; raises NothingHereError without a report, KernelError when its device is gone."""
    if not here.report:
        raise NothingHereError(f"no daemon has told what it made of {here.network}: start it once")
    report = here.report
    subnet = IPv4Network(report["subnet"])
    found = Node(
        IPv4Network(report["network"]),
        report["backend"],
        report["uplink"],
        IPv4Address(report["public_ip"]),
        _first_local(subnet),
        _mtu(report["uplink"]),
    )
    if not report.get("overlay"):
        return found
    (device,) = ip("-details", "link", "show", "dev", report["overlay"])
    info = device.get("linkinfo", {}).get("info_data", {})
    vxlan = found.backend == "vxlan"
    return Node(
        found.network,
        found.backend,
        found.uplink,
        found.public_ip,
        subnet.network_address,
        device["mtu"],
        info.get("port", 8472) if vxlan else 8285,
        info.get("id", 0),
        Mac.parse(device["address"]) if vxlan else None,
    )


def targets(node: Node, overlay: str, relay_peers: Path) -> list[Target]:
    """Return the peers that this node can send to, in the order of their subnets; raises KernelError.

    They are the kernel's routes; the udp backend, which has one for all, has them in its relay's file.
    """
    if node.backend == "udp":
        return _relay_targets(relay_peers)
    macs = {
        one["dst"]: one.get("lladdr", "") for one in (ip("neigh", "show", "dev", overlay) if overlay else [])
    }
    fdb = ip("fdb", "show", "dev", overlay, tool="bridge") if node.mac else []
    places = {one["mac"]: one["dst"] for one in fdb if "dst" in one}
    found = []
    for route in ip("-4", "route", "show"):
        gateway = route.get("gateway", "")
        subnet = _inside(route["dst"], node.network)
        if subnet is None or not gateway:
            continue
        if IPv4Address(gateway) not in node.network:
            found.append(Target(subnet, IPv4Address(gateway), subnet.network_address + 1))
        elif macs.get(gateway) in places:
            mac = macs[gateway]
            found.append(Target(subnet, IPv4Address(places[mac]), subnet.network_address, Mac.parse(mac)))
    return sorted(found, key=lambda one: one.subnet)


def _relay_targets(file: Path) -> list[Target]:
    try:
        known = decode(file.read_text(), str(file))
    except OSError as error:
        raise KernelError(f"{file}: {error.strerror}: the relay's peers are not known") from error
    return [Target(subnet, place, subnet.network_address) for subnet, place in sorted(known.items())]


def chosen(every: Sequence[Target], text: str) -> list[Target]:
    """Return the peers that `text` names by subnet, by public address or by an address of a pod."""
    try:
        wanted = IPv4Network(text)
    except ValueError:
        return []
    return [
        one
        for one in every
        if wanted.subnet_of(one.subnet) or (wanted.prefixlen == 32 and one.public_ip in wanted)
    ]


def _inside(text: str, network: IPv4Network) -> IPv4Network | None:
    try:
        found = IPv4Network(text)
    except ValueError:  # "default"
        return None
    return found if found.subnet_of(network) and found != network else None


def _mtu(device: str) -> int:
    (link,) = ip("link", "show", "dev", device)
    return int(link["mtu"])


def _first_local(subnet: IPv4Network) -> IPv4Address:
    """Return this node's own address in its subnet, such as the bridge's; 0.0.0.0 lets the kernel choose."""
    for link in ip("-4", "address", "show"):
        for address in link.get("addr_info", ()):
            if IPv4Address(address["local"]) in subnet:
                return IPv4Address(address["local"])
    return IPv4Address(0)
