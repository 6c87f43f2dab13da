"""What `probe` needs to know of this node and its peers: of the report and the kernel's tables."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Address, Family, Network, family_of, in_order
from flannel_ebpf.base.model import Mac
from flannel_ebpf.commands.diagnose.console import NothingHereError
from flannel_ebpf.commands.diagnose.networks import Here, told_families
from flannel_ebpf.contract.abi import NO_MAC
from flannel_ebpf.kernel.programs.readout import peers_in
from flannel_ebpf.relay.peers import decode


@dataclass(frozen=True, slots=True)
class Node:
    """This node as packets of one family see it.

    `overlay` is the backend's device. No vxlan device: `vni` 0 and `mac` None; no tunnel: `port` 0.
    """

    network: Network
    backend: str
    uplink: str
    public_ip: Address
    address: Address
    mtu: int
    overlay: str = ""
    port: int = 0
    vni: int = 0
    mac: Mac | None = None

    @property
    def family(self) -> Family:
        """The family of all its addresses."""
        return family_of(self.network)


@dataclass(frozen=True, slots=True)
class Target:
    """A peer: the subnet, where it is reached, and the address in the overlay that answers for it."""

    subnet: Network
    public_ip: Address
    address: Address
    mac: Mac | None = None


def ip(*arguments: str, tool: str = "ip") -> list[dict[str, Any]]:
    """Return what iproute2 says as JSON; raises KernelError with its words."""
    done = subprocess.run([tool, "-json", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise KernelError(f"{tool} {' '.join(arguments)}: {done.stderr.strip()}")
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def this_node(here: Here) -> list[Node]:
    """Return this node, once for each family of the network.

    Raises NothingHereError without a report, KernelError when a device is gone.
    """
    if not here.report:
        raise NothingHereError(f"no daemon has told what it made of {here.network}: start it once")
    return [_of_family(one.report) for one in told_families(here)]


def _of_family(report: Mapping[str, Any]) -> Node:
    subnet, overlay, backend = ip_network(report["subnet"]), report["overlay"], report["backend"]
    found = Node(
        ip_network(report["network"]),
        backend,
        report["uplink"],
        ip_address(report["public_ip"]),
        _first_local(subnet),
        _mtu(report["uplink"]),
    )
    if not overlay:
        return found
    (device,) = ip("-details", "link", "show", "dev", overlay)
    info = device.get("linkinfo", {}).get("info_data", {})
    vxlan = backend == "vxlan"
    return replace(
        found,
        address=subnet.network_address,
        mtu=device["mtu"],
        overlay=overlay,
        port=info.get("port", 8472) if vxlan else 8285,
        vni=info.get("id", 0),
        mac=Mac.parse(device["address"]) if vxlan else None,
    )


def targets(node: Node, relay_peers: Path) -> list[Target]:
    """Return the peers that this node can send to, in the order of their subnets; raises KernelError.

    They are the kernel's routes; the udp backend, which has one for all, has them in its relay's file.
    """
    if node.backend == "udp":
        return _relay_targets(relay_peers)
    overlay, family = node.overlay, f"-{node.family.value}"
    told = ip(family, "neigh", "show", "dev", overlay) if overlay else []
    macs = {one["dst"]: one.get("lladdr", "") for one in told}
    fdb = ip("fdb", "show", "dev", overlay, tool="bridge") if node.mac else []
    places = {one["mac"]: one["dst"] for one in fdb if "dst" in one}
    found = []
    for route in ip(family, "route", "show"):
        gateway = route.get("gateway", "")
        subnet = _inside(route["dst"], node.network)
        if subnet is None or not gateway:
            continue
        if ip_address(gateway) not in node.network:
            found.append(Target(subnet, ip_address(gateway), subnet.network_address + 1))
        elif macs.get(gateway) in places:
            mac = macs[gateway]
            found.append(Target(subnet, ip_address(places[mac]), subnet.network_address, Mac.parse(mac)))
    return sorted(found, key=lambda one: in_order(one.subnet))


def programmed(maps: Path) -> list[Target]:
    """Return the peers that the programs know, in the order of their subnets; raises BpfError.

    With peers on demand, all but those in use are none that the kernel knows a way to.
    """
    found = []
    for subnet, peer in peers_in(maps).items():
        station = None if peer.vtep_mac == NO_MAC else peer.vtep_mac
        address = subnet.network_address + (0 if station else 1)
        found.append(Target(subnet, peer.public_ip, address, station))
    return sorted(found, key=lambda one: in_order(one.subnet))


def _relay_targets(file: Path) -> list[Target]:
    try:
        known = decode(file.read_text(), str(file))
    except OSError as error:
        raise KernelError(f"{file}: {error.strerror}: the relay's peers are not known") from error
    return [Target(subnet, place, subnet.network_address) for subnet, place in sorted(known.items())]


def chosen(every: Sequence[Target], text: str) -> list[Target]:
    """Return the peers that `text` names by subnet, by public address or by an address of a pod."""
    try:
        wanted = ip_network(text)
    except ValueError:
        return []
    alone = wanted.prefixlen == wanted.max_prefixlen
    return [
        one
        for one in every
        if within(wanted, one.subnet) or (alone and one.public_ip == wanted.network_address)
    ]


def within(subnet: Network, network: Network) -> bool:
    """Say whether a subnet is a part of a network, which one of the other family never is."""
    return subnet.version == network.version and subnet.subnet_of(network)  # type: ignore[arg-type]


def _inside(text: str, network: Network) -> Network | None:
    try:
        found = ip_network(text)
    except ValueError:  # "default"
        return None
    return found if within(found, network) and found != network else None


def _mtu(device: str) -> int:
    (link,) = ip("link", "show", "dev", device)
    return int(link["mtu"])


def _first_local(subnet: Network) -> Address:
    """Return this node's own address in its subnet, such as the bridge's.

    Without one it is the unspecified address, which lets the kernel choose.
    """
    family = family_of(subnet)
    for link in ip(f"-{family.value}", "address", "show"):
        for told in link.get("addr_info", ()):
            if (address := ip_address(told["local"])) in subnet:
                return address
    return family.unspecified
