"""One node's programs under BPF_PROG_TEST_RUN: packets in, verdict, reason, mark and packet out."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

import pytest

from flannel_ebpf.agent.bpf_settings import tunnel_ports
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi, enums, learned
from flannel_ebpf.contract.learned import Cell
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.kernel.programs import loader
from flannel_ebpf.kernel.programs.loader import Loaded, LoadRequest, ensure_loaded
from flannel_ebpf.kernel.programs.probe import probe
from tests.bpf.compiled import EPOCH_SHIFT
from tests.bpf.loading import run_here

NETWORK = IPv4Network("10.1.0.0/16")
SUBNET = IPv4Network("10.1.1.0/24")
OWN_IP, OWN_VTEP = IPv4Address("192.0.2.1"), Mac.parse("02:fe:00:00:00:01")

# Devices of the test's network namespace: fixed indexes and addresses.
UPLINK, POD_PORT, OTHER_PORT, OVERLAY = 10, 11, 12, 13
UPLINK_MAC = Mac.parse("02:00:00:00:00:10")
GATEWAY_MAC = Mac.parse("02:cc:00:00:00:01")

NEXT_HOP_MAC = Mac.parse("02:00:00:00:00:99")

POD, POD_MAC = IPv4Address("10.1.1.10"), Mac.parse("02:aa:00:00:00:0a")
OTHER_POD, OTHER_MAC = IPv4Address("10.1.1.11"), Mac.parse("02:aa:00:00:00:0b")

NO_FLAGS = enums.PodFlag(0)
HOUR = 3600 * 10**9
HASH_KEY = 0x1122334455667788

REDIRECT, DROP, KERNEL = 7, 2, 0xFFFFFFFF  # TC_ACT_REDIRECT, TC_ACT_SHOT, TC_ACT_UNSPEC
XDP_DROP, XDP_PASS = 1, 2

# An old kernel lacks some, and all else must hold there too; test_syscall.py says what the probe must find.
ALL_CAPS = probe()
SPORTS = tunnel_ports(None, os.uname().release)
VXLAN = abi.Config(
    public_ip=OWN_IP,
    network=NETWORK.network_address,
    network_mask=NETWORK.netmask,
    subnet=SUBNET.network_address,
    subnet_mask=SUBNET.netmask,
    vtep_mac=OWN_VTEP,
    port=8472,
    sport_min=SPORTS[0],
    sport_count=SPORTS[1],
    vni=1,
    uplink=UPLINK,
    peer_len=24,
    revalidate_ms=60_000,  # however slow the machine is
    caps=ALL_CAPS,
    backend=enums.Mode.VXLAN,
    fastpath=enums.Fastpath.SUBNETS,
    source_check=enums.Check.DROP,
    direct_routing=False,
    ttl=64,
)
FLOWS = replace(VXLAN, fastpath=enums.Fastpath.FLOWS)
DIRECT = replace(VXLAN, backend=enums.Mode.DIRECT, vtep_mac=abi.NO_MAC)
UDP = replace(VXLAN, backend=enums.Mode.UDP, vtep_mac=abi.NO_MAC, port=8285)


@dataclass(frozen=True)
class Remote:
    """Another node: its public address, VTEP, subnet and a pod in it."""

    public_ip: Address
    vtep: Mac
    subnet: Network
    pod: Address

    def peer(
        self, mode: enums.Mode, *, mtu: int = 1500, on_link: bool = True, outer: str = "both"
    ) -> abi.Peer:
        """Return an entry of fl_peers; `outer`: BPF does that leg for what it sends, receives, or both."""
        vtep = self.vtep if mode == enums.Mode.VXLAN else abi.NO_MAC
        until = time.monotonic_ns() + HOUR
        return abi.Peer(
            self.public_ip,
            vtep,
            mode,
            enums.PeerFlag(int(on_link)),
            mtu,
            self.slot,
            until if outer in ("send", "both") else 0,
            until if outer in ("receive", "both") else 0,
            NEXT_HOP_MAC,
        )

    @property
    def slot(self) -> int:
        return self.subnet.network_address.packed[self.subnet.prefixlen // 8 - 1]


def remote(number: int) -> Remote:
    return Remote(
        IPv4Address(f"192.0.2.{number}"),
        Mac.parse(f"02:fe:00:00:00:{number:02x}"),
        IPv4Network(f"10.1.{number}.0/24"),
        IPv4Address(f"10.1.{number}.20"),
    )


OWN = Remote(OWN_IP, OWN_VTEP, SUBNET, POD)
PEER, SECOND_PEER, STRANGER = remote(2), remote(3), remote(9)


def as_peer(config: abi.Config) -> abi.Config:
    """Return the same configuration for the node at the other end."""
    vtep = PEER.vtep if config.backend == enums.Mode.VXLAN else abi.NO_MAC
    return replace(config, public_ip=PEER.public_ip, subnet=PEER.subnet.network_address, vtep_mac=vtep)


@dataclass(frozen=True)
class Ran:
    """What a program did with one packet. `counted` maps each reason that was counted to how often."""

    verdict: int
    frame: bytes
    ticket: int
    counted: Mapping[enums.Reason, int]
    duration_ns: int = 0

    @property
    def reason(self) -> enums.Reason | None:
        """The one reason counted, None when the program did not count at all."""
        assert sum(self.counted.values()) <= 1, f"counted more than once: {self.counted}"
        return next(iter(self.counted), None)


def skb_context(
    *, mark: int = 0, ifindex: int = 0, gso_size: int = 0, gso_segs: int = 0, wire_len: int = 0
) -> bytes:
    """Return the struct __sk_buff fields that a test run accepts."""
    ctx = bytearray(192)
    for offset, value in ((8, mark), (40, ifindex), (160, wire_len), (164, gso_segs), (176, gso_size)):
        struct.pack_into("=I", ctx, offset, value)
    return bytes(ctx)


class Node:
    """Programs loaded with one configuration, and their maps."""

    network: Network = NETWORK
    ends = (OWN, PEER)
    """This node, and the other one that it knows."""

    def __init__(self, config: abi.Config, root: Path, objects: Path) -> None:
        self.config = config
        self._ends = 0
        request = LoadRequest(
            self.network, config, entries={"fl_flows": 1024}, root=root, xdp=True, objects=objects
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loader, "run_jobs", run_here)
            loaded: Loaded = ensure_loaded(request)
        assert not loaded.xdp_error
        self.programs = {name: Program.by_id(number) for name, number in loaded.programs.items()}
        self.maps = {path.name: Map.open(path) for path in loaded.maps.iterdir()}
        self._lines = [abi.pack_u32(index) for index in range(self.maps["fl_sketch"].info.max_entries)]

    def close(self) -> None:
        for one in (*self.programs.values(), *self.maps.values()):
            one.close()

    def reset(self) -> None:
        """Forget everything learned; one other node and one pod of this one remain."""
        this, other = self.ends if self.config.public_ip == self.ends[0].public_ip else self.ends[::-1]
        for name in ("fl_peers", "fl_vteps", "fl_pods", "fl_ports", "fl_flows", "fl_levels", "fl_asked"):
            for key in self.maps[name].items():
                self.maps[name].delete(key)
        self._end_all()
        self._set_sketch(Cell(0, 0, 0))
        self.set_until(2**64 - 1)
        self.set_proof(0)
        self.add_peer(other, other.peer(self.config.backend))
        self.add_pod(this.pod)

    def set_until(self, until: int, overlay: int = 0) -> None:
        """Say until when the programs need no sign of the daemon, ns, and which device is the overlay's."""
        self.maps["fl_node"].update(abi.pack_u32(0), abi.NodeState(HASH_KEY, until, overlay).pack())

    def with_overlay(self) -> Self:
        """Tell the programs of the overlay's device, so that they open tunnel packets for the kernel."""
        self.set_until(2**64 - 1, OVERLAY)
        return self

    def set_proof(self, until: int) -> None:
        """Say until when stateless pods are, ns."""
        self.maps["fl_proof"].update(abi.pack_u32(0), abi.Proof(until).pack())

    def set_level(self, subnet: Network, flags: enums.PodFlag) -> None:
        key = abi.SubnetKey(subnet.prefixlen, subnet.network_address)
        self.maps["fl_levels"].update(key.pack(), abi.Level(flags).pack())

    def peer(self, node: Remote) -> abi.Peer:
        subnet = abi.SubnetKey(self.config.peer_len, node.subnet.network_address)
        raw = self.maps["fl_peers"].lookup(subnet.pack())
        assert raw
        return abi.Peer.unpack(raw)

    def asked(self, node: Remote) -> int:
        """Return how many packets to a peer went by way of the station of all peers."""
        key = abi.SubnetKey(self.config.peer_len, node.subnet.network_address)
        raw = self.maps["fl_asked"].lookup(key.pack())
        return abi.Asked.unpack(raw).packets if raw else 0

    def add_peer(self, node: Remote, peer: abi.Peer, *, member: bool = True) -> None:
        length = self.config.peer_len
        subnet = abi.SubnetKey(length, node.subnet.network_address)
        self.maps["fl_peers"].update(subnet.pack(), peer.pack())
        if member:
            self.maps["fl_vteps"].update(abi.AddrKey(node.public_ip).pack(), subnet.pack())

    def add_pod(
        self,
        address: Address,
        ifindex: int = POD_PORT,
        mac: Mac = POD_MAC,
        flags: enums.PodFlag = NO_FLAGS,
    ) -> None:
        self.maps["fl_pods"].update(
            abi.AddrKey(address).pack(), abi.Pod(ifindex, mac, GATEWAY_MAC, flags).pack()
        )

    def forget_pod(self, address: Address) -> None:
        self.maps["fl_pods"].delete(abi.AddrKey(address).pack())

    def pod(self, address: Address) -> abi.Pod | None:
        raw = self.maps["fl_pods"].lookup(abi.AddrKey(address).pack())
        return abi.Pod.unpack(raw) if raw else None

    def set_port(self, ifindex: int, flags: enums.PodFlag = NO_FLAGS, mac: Mac = abi.NO_MAC) -> None:
        self.maps["fl_ports"].update(abi.pack_u32(ifindex), abi.Port(flags, mac).pack())

    def port(self, ifindex: int) -> abi.Port:
        raw = self.maps["fl_ports"].lookup(abi.pack_u32(ifindex))
        assert raw
        return abi.Port.unpack(raw)

    def flow(self, key: learned.FlowKey) -> learned.Flow | None:
        raw = self.maps["fl_flows"].lookup(key.pack())
        return learned.Flow.unpack(raw) if raw else None

    def put_flow(self, key: learned.FlowKey, flow: learned.Flow) -> None:
        self.maps["fl_flows"].update(key.pack(), flow.pack())
        self.void_open()

    def forget_flow(self, key: learned.FlowKey) -> None:
        """Take a flow out of fl_flows, as the LRU does; fl_open may still know it."""
        assert self.maps["fl_flows"].delete(key.pack())

    def void_open(self) -> None:
        """Void what fl_open knows, as ends of all flows would."""
        self._end_all()
        sketch = self.maps["fl_sketch"]
        lines = {key: bytearray(line) for key, line in sketch.items().items()}
        for line in lines.values():
            line[3::4] = bytes([self._ends]) * (len(line) // 4)
        sketch.update_many((key, bytes(line)) for key, line in lines.items())

    def _end_all(self) -> None:
        self._ends = self._ends + 1 & 0xFF
        if not self._ends:
            known = self.maps["fl_open"]
            known.update_many((key, bytes(known.info.value_size)) for key in known.items())

    def clear_sketch(self, learned: int = 100) -> None:
        """Make every flow young; `learned` epochs ago all touched fl_flows."""
        self._set_sketch(Cell(epoch(), 0, learned=epoch() - learned & 0xFF))

    def fill_sketch(self, learned: int = 0) -> None:
        """Make no flow young, for this epoch and the next few; `learned` epochs ago all touched fl_flows."""
        self._set_sketch(Cell(epoch(), 255, learned=epoch() - learned & 0xFF))

    def counted_cell(self) -> tuple[int, Cell]:
        """Return the only cell of the sketch that counted anything, and its place."""
        lines = self.maps["fl_sketch"].items()
        raw = b"".join(lines[key] for key in sorted(lines, key=abi.unpack_u32))
        size = len(Cell(0, 0, 0).pack())
        cells = [raw[at : at + size] for at in range(0, len(raw), size)]
        (found,) = (one for one in {*cells} if Cell.unpack(one).packets)
        assert cells.count(found) == 1
        return cells.index(found), Cell.unpack(found)

    def put_cell(self, place: int, cell: Cell) -> None:
        sketch = self.maps["fl_sketch"]
        index, at = divmod(place * len(cell.pack()), sketch.info.value_size)
        key = abi.pack_u32(index)
        line = sketch.lookup(key)
        assert line
        sketch.update(key, line[:at] + cell.pack() + line[at + len(cell.pack()) :])

    def _set_sketch(self, cell: Cell) -> None:
        sketch = self.maps["fl_sketch"]
        value = replace(cell, ended=self._ends).pack() * (sketch.info.value_size // len(cell.pack()))
        sketch.update_many((key, value) for key in self._lines)

    def traffic(self, node: Remote) -> learned.Traffic:
        return learned.Traffic.unpack(self.maps["fl_peer_stats"].sums()[abi.pack_u32(node.slot)])

    def reasons(self, program: str) -> dict[enums.Reason, int]:
        """Return the counters of one program's hook, zeros left out."""
        return _counted(program, {}, self.maps["fl_reasons"].items())

    def run(
        self,
        program: str,
        frame: bytes,
        *,
        ticket: int = 0,
        ifindex: int = 0,
        gso_size: int = 0,
        gso_segs: int = 0,
        repeat: int = 1,
    ) -> Ran:
        """Run one program once on one frame. `ifindex` 0: the device where that program is attached."""
        before = self.maps["fl_reasons"].items()
        xdp = program == "fl_xdp"
        overlay = program == "fl_to_peer" and self.config.backend != enums.Mode.DIRECT
        at = ifindex or (POD_PORT if "pod" in program else OVERLAY if overlay else UPLINK)
        ctx = skb_context(mark=ticket, ifindex=at, gso_size=gso_size, gso_segs=gso_segs)
        done = self.programs[program].test_run(frame, b"" if xdp else ctx, repeat)
        counted = _counted(program, before, self.maps["fl_reasons"].items())
        left = 0 if xdp else struct.unpack_from("=I", done.ctx, 8)[0]
        return Ran(done.verdict, done.data, left, counted, done.duration_ns)


def _counted(
    program: str, before: Mapping[bytes, bytes], after: Mapping[bytes, bytes]
) -> dict[enums.Reason, int]:
    """Return by how much one program's hook counts more in `after`, entries of fl_reasons, zeros left out."""
    hooks = [field.name for field in fields(learned.Count)]
    at = hooks.index(program.removeprefix("fl_"))

    def count(values: bytes) -> int:
        return sum(struct.unpack(f"={len(values) // 8}Q", values)[at :: len(hooks)])

    more = {
        key: count(values) - count(before.get(key, b""))
        for key, values in after.items()
        if values != before.get(key)
    }
    return {enums.Reason(abi.unpack_u32(key)): packets for key, packets in more.items() if packets}


def epoch() -> int:
    """Return the sketch's present epoch."""
    return time.monotonic_ns() >> EPOCH_SHIFT & 0xFF


def flow_hash(key: learned.FlowKey) -> int:
    """Return the hash that bpf/flows.h has of a flow here."""
    first, second = struct.unpack("=QQ", key.pack())
    mixed = first ^ HASH_KEY
    mixed = (mixed ^ mixed >> 29) * 0x9E3779B97F4A7C15 % 2**64
    return ((mixed ^ mixed >> 32 ^ second) * 0xBF58476D1CE4E5B9 % 2**64) >> 32


def word(key: learned.FlowKey, at: int, *, established: bool = True) -> int:
    """Return what fl_flows keeps of a direction that the kernel carried at that time, ns."""
    return flow_hash(key) >> 9 << 41 | established << 40 | at >> learned.TIME_SHIFT


def a_flow(
    key: learned.FlowKey, tx: int = 0, rx: int = 0, ifindex: int = POD_PORT, born: int = 0
) -> learned.Flow:
    """Return a flow that the kernel carried at these times, ns; 0: never."""
    return learned.Flow(
        word(key, tx) if tx else 0, word(key, rx) if rx else 0, ifindex, born >> learned.TIME_SHIFT
    )
