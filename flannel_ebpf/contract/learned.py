"""bpf/flannel.h in Python: keys and values of the maps that only the programs write.

Byte order and layouts are as in abi.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from flannel_ebpf.base.family import Address
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.contract.record import Record, mirrors

TIME_SHIFT = 20
"""Times in words of fl_flows are in 2**20 ns."""

_TIME_MASK = 2**40 - 1


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

    Epochs of 2**31 ns, modulo 256; `packets` halves every epoch, and its highest bit says that fl_open may
    know one of these flows; `ended` counts ends of these flows.
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
