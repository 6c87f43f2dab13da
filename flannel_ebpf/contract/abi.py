"""bpf/flannel.h in Python: every map key, map value and constant that both sides share.

The header is the contract; `btf.check` compares record.STRUCTS and ENUMS with the object at every load.
It is compiled once for each family of IP: a struct with addresses has two layouts.
Addresses are in wire order; counters and ports are host byte order unless a field says otherwise.
"""

from __future__ import annotations

import struct
import sys
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from flannel_ebpf.base.errors import AbiMismatch
from flannel_ebpf.base.family import Address
from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract.record import Record, mirrors

TIME_SHIFT = 20
"""Times in words of fl_flows are in 2**20 ns."""

_TIME_MASK = 2**40 - 1

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


class Mode(IntEnum):
    """How packets reach a peer."""

    NONE = 0
    VXLAN = 1
    DIRECT = 2
    UDP = 3


class Fastpath(IntEnum):
    """Which packets may leave the kernel's path."""

    OFF = 0
    SUBNETS = 1
    FLOWS = 2
    AUTO = 3


class Check(IntEnum):
    """What to do with packets whose source is not who may send it."""

    OFF = 0
    COUNT = 1
    DROP = 2


class Cap(IntFlag):
    """Building blocks that the running kernel has (`kernel.probe`)."""

    REDIRECT_NEIGH = 1
    REDIRECT_PEER = 2
    ENCAP_L2_ETH = 4
    DECAP_L4_UDP = 8
    CSUM_LEVEL = 16
    COARSE_CLOCK = 32


class PeerFlag(IntFlag):
    """What is special about the way to a peer."""

    ON_LINK = 1
    BPF = 2


class PodFlag(IntFlag):
    """What is special about a pod, or about its veth."""

    SHAPED = 1
    GUARDED = 2
    STATELESS = 4
    NODE = 8


class Hook(IntEnum):
    """Where a packet was when its reason was counted; also the order of Count's fields."""

    FROM_POD = 0
    TO_PEER = 1
    FROM_PEER = 2
    TO_POD = 3
    XDP = 4


Reason = IntEnum(
    "Reason",
    "GO_ON FAST_VXLAN FAST_DIRECT FAST_UDP LEARN_SYN LEARN_NEW LEARN_REVALIDATE LEARN_PEER LEARN_YOUNG "
    "LEARN_LEFT LEARN_DELIVERED LEARN_CHANGED LEARN_LATE WRAPPED UNWRAPPED TCP_STATE STAND_ASIDE MEMBER "
    "NOT_OVERLAY NOT_FAMILY NOT_UNICAST TRUNCATED BAD_HEADER IP_OPTIONS FRAGMENT TTL TOO_BIG PROTOCOL GSO "
    "CHECKSUM ECN OUTER VXLAN_HEADER VNI INNER_MAC NO_POD SHAPED GUARDED NOT_GATEWAY POD_SOURCE "
    "PEER_SOURCE HELPER DROP_NOT_MEMBER DROP_PEER_SOURCE DROP_POD_SOURCE DROP_POD_TUNNEL DROP_BROKEN "
    "DROP_NO_PEER",
    start=0,
)
"""In what each packet ended; bpf/flannel.h says what each one means."""


def _constants(enum: type[IntEnum] | type[IntFlag], prefix: str, count: str = "") -> dict[str, int]:
    names = {f"{prefix}{one.name}": int(one) for one in enum}
    return {**names, count: len(names)} if count else names


ENUMS: dict[str, dict[str, int]] = {
    "fl_mode": _constants(Mode, "FL_MODE_"),
    "fl_fastpath": _constants(Fastpath, "FL_FASTPATH_"),
    "fl_check": _constants(Check, "FL_CHECK_"),
    "fl_cap": _constants(Cap, "FL_CAP_"),
    "fl_peer_flag": _constants(PeerFlag, "FL_PEER_"),
    "fl_pod_flag": _constants(PodFlag, "FL_POD_"),
    "fl_hook": _constants(Hook, "FL_HOOK_", "FL_HOOKS"),
    "fl_reason": _constants(Reason, "FL_", "FL_REASONS"),
}
"""Enum name in C -> constant -> value."""


@mirrors(
    "fl_config",
    "4s 4s 4s 4s 4s 6s H H H I I I I I I I I B B B B B 3x I",
    "16s 16s 16s 16s 16s 6s H H H I I I I I I I I B B B B B 3x I",
)
@dataclass(frozen=True, slots=True)
class Config(Record):
    """What a program knows when it is loaded; constant afterwards, so the verifier removes dead branches.

    `port` is the tunnel's, `sport_min` to `sport_max` the kernel's local port range; `uplink` an ifindex;
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
    sport_max: int
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


@mirrors(
    "fl_flow_key",
    "4s 4s 2s 2s B 3x",
    "16s 16s 2s 2s B 3x",
)
@dataclass(frozen=True, slots=True)
class FlowKey(Record):
    """Key of fl_flows: one connection seen from the pod; the ports lie there in network byte order."""

    pod: Address
    remote: Address
    pod_port: int
    remote_port: int
    proto: int


@mirrors("fl_flow", "Q Q I I")
@dataclass(frozen=True, slots=True)
class Flow(Record):
    """Value of fl_flows: a word for each direction that the kernel was seen to carry, see bpf/flannel.h.

    `born` is in 2**20 ns, CLOCK_MONOTONIC.
    """

    tx: int
    rx: int
    ifindex: int
    born: int

    @property
    def sent(self) -> int:
        """When the kernel last carried a packet from the pod unchanged, ns; 0: never."""
        return (self.tx & _TIME_MASK) << TIME_SHIFT

    @property
    def heard(self) -> int:
        """The same of packets to the pod."""
        return (self.rx & _TIME_MASK) << TIME_SHIFT

    @property
    def established(self) -> bool:
        """Whether conntrack knows a TCP connection as established."""
        return bool((self.tx | self.rx) >> 40 & 1)


@mirrors(
    "fl_lesson",
    "16s I I H H B B B x I I I I",
    "40s I I H H B B B x I I I I",
)
@dataclass(frozen=True, slots=True)
class Lesson(Record):
    """How a packet looked when it began its way through the kernel; `number` is 0 once it is taken."""

    key: bytes
    seq: int
    ack: int
    id: int
    len: int
    tos: int
    ttl: int
    way: int
    number: int
    ifindex: int
    hash: int
    time: int


@mirrors(
    "fl_book",
    "3072s I",
    "4608s I",
)
@dataclass(frozen=True, slots=True)
class Book(Record):
    """Value of fl_lessons on one CPU: its lessons, and the last one's number."""

    lessons: bytes
    last: int


@mirrors("fl_cell", "B B B B")
@dataclass(frozen=True, slots=True)
class Cell(Record):
    """One cell of fl_sketch: packets that flows with this hash sent lately, and when one touched fl_flows.

    Epochs of 2**31 ns, modulo 256; `packets` halves every epoch; `ended` counts ends of these flows.
    """

    epoch: int
    packets: int
    learned: int
    ended: int = 0


@mirrors("fl_line", "64s")
@dataclass(frozen=True, slots=True)
class Line(Record):
    """Value of fl_sketch: a cache line of cells."""

    cells: bytes


@mirrors(
    "fl_open",
    "16s I I Q",
    "40s I I Q 8x",
)
@dataclass(frozen=True, slots=True)
class Open(Record):
    """One way of a set of fl_open: a direction by its packed FlowKey and hash, and what ends it."""

    key: bytes
    hash: int
    ifindex: int
    until: int


@mirrors("fl_open_set", "64s")
@dataclass(frozen=True, slots=True)
class OpenSet(Record):
    """Value of fl_open: the directions that share a hash's place."""

    ways: bytes


@mirrors("fl_count", "Q Q Q Q Q")
@dataclass(frozen=True, slots=True)
class Count(Record):
    """Value of fl_reasons: packets by hook."""

    from_pod: int
    to_peer: int
    from_peer: int
    to_pod: int
    xdp: int


@mirrors(
    "fl_event",
    "Q I I 4s 4s 4s 2s 2s B B B B 4x",
    "Q I I 16s 16s 16s 2s 2s B B B B",
)
@dataclass(frozen=True, slots=True)
class Event(Record):
    """Value of fl_events: one packet as `monitor` is told of it; `outer`: who sent the tunnel packet."""

    at: int
    ifindex: int
    len: int
    source: Address
    target: Address
    outer: Address
    source_port: int
    target_port: int
    proto: int
    hook: Hook
    reason: Reason
    tcp_flags: int


@mirrors("fl_traffic", "Q Q Q Q")
@dataclass(frozen=True, slots=True)
class Traffic(Record):
    """Value of fl_peer_stats: traffic carried by BPF; bytes are of inner IPv4 packets."""

    tx_packets: int
    tx_bytes: int
    rx_packets: int
    rx_bytes: int
