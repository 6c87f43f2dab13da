"""Every kind of kernel object we own, as comparable values.

Reconciliation reads what is there as a set of these, computes what should be there as another, and
`plan` turns the difference into operations. `key` says which object it is, equality whether it is right.
Names of devices, not indexes, wherever the device is ours or the uplink; indexes for pod veths, because a
new veth may reuse an old one's name.
"""

from __future__ import annotations

import zlib
from collections.abc import Hashable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Literal

from flannel_ebpf.base.family import Address, Family, Interface, Network, family_of
from flannel_ebpf.base.model import Mac

ROUTE_PROTOCOL = 251
"""rtm_protocol of every route we make: the mark that a fresh process recognises."""

ANY_PEER_GATEWAY = IPv4Address("169.254.1.1")
"""Gateway of the one route to all peers on demand: an address that no subnet of a network can have."""

LAST_METRIC = 0xFFFFFFFF
"""Metric of a route that counts only when no other has its destination."""

FILTER_PRIORITY = 251
"""tc priority of every filter we attach."""

FILTER_MARK = 0xFB000000
"""Top octet of the handle of every filter we attach; the rest names the network."""

Direction = Literal["ingress", "egress"]
XdpMode = Literal["generic", "native"]
Attach = Literal["tcx", "clsact"]


def filter_handle(network: Network) -> int:
    """Return the tc handle of one network's filters, so that networks on one device stay apart."""
    return FILTER_MARK | zlib.crc32(str(network).encode()) & 0xFFFFFF


@dataclass(frozen=True, slots=True)
class Scope:
    """What belongs to one network on this node: enough for a fresh process to tell its own objects.

    `overlay` is the overlay device ("flannel.1", "flannel0"), "" for host-gw. `uplink` is an ifindex.
    """

    network: Network
    subnet: Network
    overlay: str
    uplink: int

    @property
    def filter_handle(self) -> int:
        """The tc handle of this network's filters."""
        return filter_handle(self.network)


@dataclass(frozen=True, slots=True)
class VxlanLink:
    """`flannel.<VNI>` with the attributes flannel gives it (pkg/backend/vxlan/device.go).

    `up` is false only in what was read: a device that is down has lost its routes and is not right.
    """

    name: str
    vni: int
    port: int
    local: Address
    parent: int
    mtu: int
    mac: Mac
    learning: bool = False
    gbp: bool = False
    up: bool = True

    @property
    def key(self) -> Hashable:
        """One device per name."""
        return self.name


@dataclass(frozen=True, slots=True)
class RelayProcess:
    """The process that serves the udp backend's TUN device, which it makes; `command` is its command line."""

    tun: str
    command: tuple[str, ...]

    @property
    def key(self) -> Hashable:
        """One relay per TUN device."""
        return self.tun


@dataclass(frozen=True, slots=True)
class TunLink:
    """The relay's TUN device. `up` is false only in what was read, as of a VxlanLink."""

    name: str
    mtu: int
    up: bool = True

    @property
    def key(self) -> Hashable:
        """One device per name."""
        return self.name


@dataclass(frozen=True, slots=True)
class RelayPeer:
    """A line of the relay's table: remote subnet -> peer's public address."""

    subnet: Network
    public_ip: Address

    @property
    def key(self) -> Hashable:
        """One address per subnet."""
        return self.subnet


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address on a device of ours; flannel puts `<subnet>/32` on flannel.<VNI>."""

    ifname: str
    address: Interface

    @property
    def key(self) -> Hashable:
        """A device may carry several addresses."""
        return (self.ifname, self.address)


@dataclass(frozen=True, slots=True)
class Sysctl:
    """A value under /proc/sys; `path` is relative to it ("net/ipv6/conf/flannel.1/accept_ra").

    `lent`: it is the whole host's, so the value of before is remembered and given back in the end.
    """

    path: str
    value: str
    lent: bool = field(default=False, compare=False)

    @property
    def key(self) -> Hashable:
        """One value per path."""
        return self.path


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent neighbour on our device: remote subnet's network address -> peer's VTEP MAC."""

    ifname: str
    ip: Address
    mac: Mac

    @property
    def key(self) -> Hashable:
        """One neighbour per device and address."""
        return (self.ifname, self.ip)


@dataclass(frozen=True, slots=True)
class FdbEntry:
    """A permanent NTF_SELF entry of our vxlan device: peer's VTEP MAC -> peer's public address."""

    ifname: str
    mac: Mac
    dst: Address

    @property
    def key(self) -> Hashable:
        """The kernel replaces the destination of a unicast MAC."""
        return (self.ifname, self.mac)


@dataclass(frozen=True, slots=True)
class Route:
    """A route of the main table to a remote subnet.

    vxlan: via the subnet's own network address, on our device, onlink. direct: via the peer's public
    address on the uplink. blackhole: no gateway, no device (own subnet, `--ip-blackhole-route`); its `metric`
    is LAST_METRIC, so that it takes only what the pods' bridge, with the same destination, does not.
    `protocol` tells a route to adopt (flanneld's are RTPROT_BOOT) from one of ours.
    """

    dst: Network
    gateway: Address | None
    ifname: str
    onlink: bool = False
    blackhole: bool = False
    protocol: int = ROUTE_PROTOCOL
    metric: int = 0

    @property
    def key(self) -> Hashable:
        """The main table holds one route per destination and metric."""
        return (self.dst, self.metric)


@dataclass(frozen=True, slots=True)
class MapEntry:
    """One entry of a pinned BPF map, in the byte layout of bpf/flannel.h."""

    map: str
    map_key: bytes
    value: bytes

    @property
    def key(self) -> Hashable:
        """One value per map and key."""
        return (self.map, self.map_key)


@dataclass(frozen=True, slots=True)
class PinFolder:
    """A folder of pinned maps or programs; one that nobody wants any more is a former version's."""

    path: str

    @property
    def key(self) -> Hashable:
        """The path says what is in it."""
        return self.path


@dataclass(frozen=True, slots=True)
class Filter:
    """One of our programs at a device's tc hook.

    `prog_id` is the kernel's id of the pinned program that should run there. `via` "tcx": attached to the
    device and recognised by the program itself; "clsact": a filter on that qdisc, recognised by its handle
    and priority.
    """

    ifindex: int
    direction: Direction
    program: str
    prog_id: int
    via: Attach

    @property
    def key(self) -> Hashable:
        """One program of ours per device and direction; `via` may change as part of one Put."""
        return (self.ifindex, self.direction)


@dataclass(frozen=True, slots=True)
class XdpProgram:
    """`fl_xdp` on the uplink."""

    ifindex: int
    mode: XdpMode
    prog_id: int

    @property
    def key(self) -> Hashable:
        """A device has one XDP program."""
        return self.ifindex


@dataclass(frozen=True, slots=True)
class HeadroomPort:
    """A device that is never up, one more port of a pods' bridge, so that packets come with headroom.

    A bridge has the veths in it ask for the headroom that any of its ports needs (net/bridge/br_if.c,
    update_headroom). A vxlan device needs enough for our headers; without one the kernel allocates every UDP
    packet of a pod anew when it is encapsulated. `bridge` is an ifindex, `up` true only in what was read.
    """

    name: str
    bridge: int
    up: bool = False

    @property
    def key(self) -> Hashable:
        """One device per name, which is made from the bridge's ifindex."""
        return self.name


@dataclass(frozen=True, slots=True)
class Ruleset:
    """All our firewall rules of one network, applied as one transaction.

    `backend` is "iptables" or "nftables", `rules` what `iptables-save`/`nft` would show of them.
    """

    backend: str
    name: str
    rules: tuple[str, ...]

    @property
    def key(self) -> Hashable:
        """One rule set per tool and network."""
        return (self.backend, self.name)

    @property
    def masquerades(self) -> bool:
        """Whether pods need it to be answered from outside the network."""
        return any("masquerade" in rule.lower() for rule in self.rules)


Object = (
    PinFolder
    | RelayProcess
    | VxlanLink
    | TunLink
    | LinkAddress
    | Sysctl
    | Ruleset
    | Neighbour
    | FdbEntry
    | RelayPeer
    | MapEntry
    | Route
    | Filter
    | XdpProgram
    | HeadroomPort
)


def device_of(obj: Object) -> str:
    """Return the name of the device that an object is or stands on, "" when it needs none."""
    match obj:
        case VxlanLink(name=name) | TunLink(name=name) | RelayProcess(tun=name):
            return name
        case LinkAddress(ifname=name) | Neighbour(ifname=name) | FdbEntry(ifname=name) | Route(ifname=name):
            return name
        case Sysctl(path):
            words = path.split("/")
            return words[3] if words[0] == "net" and words[2:3] == ["conf"] else ""
        case _:
            return ""


def family_in(obj: Object) -> Family:
    """Return whose packets need an object; IPv4's where it tells of no family."""
    match obj:
        case VxlanLink(local=what) | LinkAddress(address=what) | Neighbour(ip=what) | Route(dst=what):
            return family_of(what)
        case Ruleset(name=network) if ":" in network:
            return Family.V6
        case _:
            return Family.V4


DEVICES = (RelayProcess, VxlanLink, TunLink)
"""What makes a device: with it the kernel may drop the device's addresses, routes and neighbours."""

ORDER: tuple[type, ...] = (
    PinFolder,
    *DEVICES,
    Sysctl,
    LinkAddress,
    Ruleset,
    Neighbour,
    FdbEntry,
    RelayPeer,
    MapEntry,
    Route,
    Filter,
    XdpProgram,
    HeadroomPort,
)
"""Order of creation: device and its settings, what packets need on their way, then what sends packets there,
then what only makes that cheaper.

Deletion runs the other way round, so that no program or route ever points at something already gone.
"""
