"""bpf/flannel.h in Python: what the control plane writes into maps, and how all are read.

The header is the contract; `mirror.check` compares it with the object at every
load. What only the programs write is in learned.py, the enums in enums.py.
It is compiled once for each family of IP: a struct with addresses has two layouts.
Addresses are in wire order; counters and ports are host byte order unless a field says otherwise.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass

from flannel_ebpf.base.errors import AbiMismatch
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract.enums import Cap, Check, Fastpath, Mode, PeerFlag, PodFlag
from flannel_ebpf.contract.record import STRUCTS, Record, mirrors

NO_MAC = Mac(bytes(6))
"""Peer.vtep_mac of a peer that has none."""

ANY_PEER_MAC = Mac(b"\x02flann")
"""FL_ANY_PEER_MAC: station of all peers that have no kernel objects of their own."""

_PROGRAMS_OWN = {"fl_peers": 24, "fl_ports": 8}


def planned_part(name: str, value: bytes) -> bytes:
    """Return a map's value with zeros where only programs write, which is its end."""
    own = _PROGRAMS_OWN.get(name, 0)
    return value[: len(value) - own] + bytes(own)


def pack_u32(number: int) -> bytes:
    """Return a bare __u32, the key of fl_ports (ifindex), fl_reasons (Reason) and fl_peer_stats (slot)."""
    return struct.pack("=I", number)


def unpack_u32(data: bytes) -> int:
    """Read a bare __u32; AbiMismatch when it is not four bytes."""
    if len(data) != 4:
        raise AbiMismatch(f"__u32: {data.hex()} is not four bytes")
    return int.from_bytes(data, sys.byteorder)


@mirrors(
    "fl_config",
    "4s 4s 4s 4s 4s 6s H H H I I I I I I I I B B B B B 3x I",
    "16s 16s 16s 16s 16s 6s H H H I I I I I I I I B B B B B 3x I",
)
@dataclass(frozen=True, slots=True)
class Config(Record):
    """What a program knows when it is loaded; constant afterwards, so the verifier removes dead branches.

    `port` is the tunnel's, `sport_min` the first of `sport_count` source ports; `uplink` an ifindex;
    `peer_len` the prefix length of every subnet in fl_peers.
    `direct_routing`: some peers of a vxlan network are Mode.DIRECT; `ttl` is for outer headers.
    `uplink_finishes`: what leaves the uplink is cut to size and has its checksums; only then may all packets
    take the udp format, because a peer's relay reads datagrams. `learning`: a
    vxlan device that learns from what it receives must receive it itself.
    `outer_checksum`: vxlan over IPv4 has an outer UDP checksum, too.
    `monitor`: n tells of one packet in n through fl_events, 0 of none.
    """

    public_ip: Address
    network: Address
    network_mask: Address
    subnet: Address
    subnet_mask: Address
    vtep_mac: Mac
    port: int
    sport_min: int
    sport_count: int
    vni: int
    uplink: int
    peer_len: int
    revalidate_ms: int
    caps: Cap
    backend: Mode
    fastpath: Fastpath
    source_check: Check
    direct_routing: bool
    ttl: int
    uplink_finishes: bool = False
    learning: bool = False
    outer_checksum: bool = False
    monitor: int = 0


@mirrors("fl_node", "Q Q I 4x")
@dataclass(frozen=True, slots=True)
class NodeState(Record):
    """The one value of fl_node: the key of hashes, and until when the programs need no sign of life (ns).

    `overlay`: ifindex of the backend's device, 0 without one.
    """

    hash_key: int
    until: int
    overlay: int


@mirrors(
    "fl_subnet",
    "I 4s",
    "I 16s",
)
@dataclass(frozen=True, slots=True)
class SubnetKey(Record):
    """Key of fl_peers: prefix length in bits, then the address, as the kernel's LPM trie wants it."""

    len: int
    addr: Address


@mirrors(
    "fl_peer",
    "4s 6s B B H H Q Q 6s 2x",
    "16s 6s B B H H 4x Q Q 6s 2x",
)
@dataclass(frozen=True, slots=True)
class Peer(Record):
    """Value of fl_peers. `mtu` is the largest outer packet; `slot` indexes fl_peer_stats.

    What follows is the programs': until when they may do the outer leg, ns, and a direct peer's next hop.
    """

    public_ip: Address
    vtep_mac: Mac
    mode: Mode
    flags: PeerFlag
    mtu: int
    slot: int
    tx_until: int = 0
    rx_until: int = 0
    next_mac: Mac = NO_MAC


def pack_subnet(subnet: Network) -> bytes:
    """Return the SubnetKey of a subnet, in a fifth of the time: there are thousands."""
    return pack_u32(subnet.prefixlen) + subnet.network_address.packed


def slot_in(value: bytes) -> int:
    """Read Peer.slot alone."""
    for size, places in (STRUCTS[family][Peer.c_name] for family in Family):
        if size == len(value):
            at, width = places["slot"]
            return int.from_bytes(value[at : at + width], sys.byteorder)
    raise AbiMismatch(f"struct {Peer.c_name}: {value.hex()} cannot be one")


@mirrors("fl_asked", "Q")
@dataclass(frozen=True, slots=True)
class Asked(Record):
    """Value of fl_asked, by SubnetKey: what was sent to a peer by way of ANY_PEER_MAC."""

    packets: int


@mirrors(
    "fl_addr",
    "4s",
    "16s",
)
@dataclass(frozen=True, slots=True)
class AddrKey(Record):
    """Key of fl_vteps and fl_pods."""

    addr: Address


@mirrors("fl_pod", "I 6s 6s I")
@dataclass(frozen=True, slots=True)
class Pod(Record):
    """Value of fl_pods: host side of the veth, and the MACs of frames that the kernel delivers there."""

    ifindex: int
    mac: Mac
    gateway_mac: Mac
    flags: PodFlag


@mirrors("fl_level", "I")
@dataclass(frozen=True, slots=True)
class Level(Record):
    """Value of fl_levels: what holds for pods of a local prefix beside their port's flags."""

    flags: PodFlag


@mirrors("fl_proof", "Q")
@dataclass(frozen=True, slots=True)
class Proof(Record):
    """The one value of fl_proof: until when PodFlag.STATELESS counts, ns, CLOCK_MONOTONIC."""

    until: int


@mirrors("fl_port", "I 6s 2x")
@dataclass(frozen=True, slots=True)
class Port(Record):
    """Value of fl_ports, by ifindex. `mac`, the programs': from which its pod spoke last."""

    flags: PodFlag
    mac: Mac = NO_MAC
