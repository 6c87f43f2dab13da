"""The BPF side of one network on this node: its programs and maps, through their pins."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path
from types import TracebackType
from typing import Self

from flannel_ebpf.base.errors import BpfError, KernelError, edge
from flannel_ebpf.base.family import Network
from flannel_ebpf.contract import abi
from flannel_ebpf.desired.objects import MapEntry
from flannel_ebpf.desired.plan import Failure, Op, Put
from flannel_ebpf.kernel.bpf import Map, Program, possible_cpus
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.loader import Loaded, LoadRequest, ensure_loaded

log = logging.getLogger(__name__)

MAINTAINED = ("fl_levels", "fl_peers", "fl_vteps", "fl_ports", "fl_pods")
"""The maps whose entries are planned, in the order of writing.

fl_pods is learned by the programs, with flags of fl_levels; the daemon takes away, and corrects flags.
"""

_FOR_EVER = 2**64 - 1
_ONLY = abi.pack_u32(0)


class Datapath:
    """Loads programs when their constants change and keeps the maps' entries.

    The programs in use, their maps and what is attached all live in the kernel: closing this object, or the
    process dying, changes nothing for packets. Every method but `load` comes after a `load`.
    """

    def __init__(self, network: Network, root: Path, objects: Path, flow_entries: int, *, xdp: bool) -> None:
        self._network = network
        self._root = root
        self._objects = objects
        self._entries = {"fl_flows": flow_entries}
        self._xdp = xdp
        self._loaded: Loaded | None = None
        self._config: abi.Config | None = None
        self._maps: dict[str, Map] = {}
        self._programs: dict[str, Program] = {}
        self._pinned: dict[Path, int] = {}
        self._entries_of: dict[str, dict[bytes, MapEntry]] = {}
        self._touched: dict[str, dict[bytes, bytes]] = {}
        self._swap = threading.Lock()
        """Held while maps are exchanged, and by whoever writes to one in another thread than `load`."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give back every descriptor."""
        with self._swap:
            self._close()

    def _close(self) -> None:
        for one in (*self._maps.values(), *self._programs.values()):
            one.close()
        self._maps, self._programs, self._pinned, self._loaded = {}, {}, {}, None

    def load(self, config: abi.Config) -> Loaded:
        """Have programs with these constants pinned, loading them if they are not.

        Programs in use whose pins somebody removed are pinned again, and nothing attached is touched.
        Raises BpfUnavailable, VerifierRejected, AbiMismatch.
        """
        if self._loaded and self._config == config:
            return replace(self._loaded, changed=self._pin_again())
        request = LoadRequest(
            self._network, config, self._entries, xdp=self._xdp, root=self._root, objects=self._objects
        )
        loaded = ensure_loaded(request)
        with ExitStack() as opened, edge(f"pins of {self._network}", BpfError):
            maps = {path.name: opened.enter_context(Map.open(path)) for path in loaded.maps.iterdir()}
            programs = {
                path.name: opened.enter_context(Program.open(path))
                for folder in loaded.folders
                for path in folder.iterdir()
            }
            opened.pop_all()  # nothing failed: they stay open
        self.vouch(0.0)  # the programs that are replaced hear nothing from now on
        with self._swap:
            self._close()
            self._maps, self._programs = maps, programs
        self._loaded, self._config = loaded, config
        self._pinned = {path: _inode(path) for path in self._held()}
        log.info("programs of %s are in use, on the maps of %s", _names(loaded.folders), loaded.maps)
        return loaded

    def _held(self) -> dict[Path, Map | Program]:
        """Return every object by the path where it is pinned, or should be."""
        every: list[Map | Program] = [*self._maps.values(), *self._programs.values()]
        return {Path(one.name): one for one in every}

    def _pin_again(self) -> bool:
        lost = [(path, one) for path, one in self._held().items() if self._pinned[path] != _inode(path)]
        for path, one in lost:
            log.warning("%s was unpinned by somebody, pinning it again", path)
            with edge(f"pin {path}", BpfError):
                if not path.parent.is_dir():
                    pins.clear(path.parent)
                path.parent.mkdir(parents=True, exist_ok=True)
                pins.clear(path)
            one.pin(path)
            self._pinned[path] = _inode(path)
        return bool(lost)

    def read(self) -> list[MapEntry]:
        """Return every entry of the maintained maps: the same object for one that is as it was."""
        return [entry for name in MAINTAINED for entry in self._read(name)]

    def _read(self, name: str) -> Iterable[MapEntry]:
        before, now = self._entries_of.get(name, {}), dict[bytes, MapEntry]()
        touched: dict[bytes, bytes] = {}
        for key, whole in self._maps[name].items().items():
            value = abi.planned_part(name, whole)
            if value != whole:
                touched[key] = whole
            known = before.get(key)
            now[key] = known if known and known.value == value else MapEntry(name, key, value)
        self._entries_of[name], self._touched[name] = now, touched
        return now.values()

    def adopt(self, entries: Iterable[MapEntry]) -> list[MapEntry]:
        """Return what was read last, from now on with these very objects where they are equal to it."""
        for entry in entries:
            known = self._entries_of[entry.map]
            if known.get(entry.map_key) == entry:
                known[entry.map_key] = entry
        return [entry for name in MAINTAINED for entry in self._entries_of[name].values()]

    def sent(self) -> dict[Network, float]:
        """Return when each peer was last seen to be sent to, as of the last `read`.

        In seconds of CLOCK_MONOTONIC.
        """
        ahead = self._config.revalidate_ms / 1000 if self._config else 0.0
        peers = ((key, abi.Peer.unpack(value)) for key, value in self._touched.get("fl_peers", {}).items())
        return {_subnet(key): peer.tx_until / 1e9 - ahead for key, peer in peers if peer.tx_until}

    def asked(self, most: int) -> dict[Network, int]:
        """Take the peers that most packets went to by way of the station of all peers, with how many packets.

        Those that are left are counted on: during a scan they are thousands, and to take them all is work.
        """
        found = self._maps["fl_asked"].items()
        packets = {key: abi.Asked.unpack(value).packets for key, value in found.items()}
        taken = sorted(packets, key=lambda key: -packets[key])[:most]
        for key in taken:
            self._maps["fl_asked"].delete(key)
        return {_subnet(key): packets[key] for key in taken}

    def program_fds(self) -> dict[str, int]:
        """Return a descriptor of every program by name, for attaching; they stay this object's."""
        return {name: program.fd for name, program in self._programs.items()}

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out operations on map entries, a whole map at a time where possible; return the failed."""
        failures: list[Failure] = []
        for name in MAINTAINED:
            mine = [(op, op.obj) for op in ops if isinstance(op.obj, MapEntry) and op.obj.map == name]
            puts = [(op, entry) for op, entry in mine if isinstance(op, Put)]
            try:
                if name == "fl_peers":
                    self._clear_counters(puts)
                self._maps[name].update_many((entry.map_key, entry.value) for _, entry in puts)
            except BpfError as error:
                failures += [Failure(op, KernelError(f"{name}: {error}")) for op, _ in puts]
            for op, entry in mine:
                if not isinstance(op, Put):
                    failures += self._delete(op, entry)
        return failures

    def _delete(self, op: Op, entry: MapEntry) -> list[Failure]:
        try:
            self._maps[entry.map].delete(entry.map_key)
        except BpfError as error:
            return [Failure(op, KernelError(f"{entry.map}: {error}"))]
        return []

    def _clear_counters(self, puts: Sequence[tuple[Op, MapEntry]]) -> None:
        """Zero the traffic counters that a new peer takes over from one that is gone."""
        stats = self._maps["fl_peer_stats"]
        for op, entry in puts:
            if isinstance(op, Put) and op.old is None:
                slot = abi.Peer.unpack(entry.value).slot
                stats.update(abi.pack_u32(slot), bytes(stats.info.value_size * possible_cpus()))

    def beat(self, seconds: float, overlay: int) -> None:
        """Tell the programs that somebody keeps them in line, for so many seconds from now; 0: for ever.

        `overlay`: ifindex of the backend's device, 0 without one. Raises BpfError.
        """
        until = time.monotonic_ns() + int(seconds * 1e9) if seconds else _FOR_EVER
        state = self._maps["fl_node"]
        before = abi.NodeState.unpack(state.lookup(_ONLY) or bytes(state.info.value_size))
        state.update(_ONLY, abi.NodeState(before.hash_key or secrets.randbits(64), until, overlay).pack())

    def vouch(self, until: float) -> None:
        """Have PodFlag.STATELESS count until then (time.monotonic); 0.0: no longer. For any thread.

        Raises BpfError.
        """
        with self._swap:
            if self._maps:
                self._maps["fl_proof"].update(_ONLY, abi.Proof(int(until * 1e9)).pack())

    def room(self) -> int:
        """Return how many peers the maps hold."""
        return min(self._maps[name].info.max_entries for name in ("fl_peers", "fl_vteps"))

    def slots(self) -> int:
        """Return how many peers' traffic can be told apart."""
        return self._maps["fl_peer_stats"].info.max_entries


def _subnet(map_key: bytes) -> Network:
    key = abi.SubnetKey.unpack(map_key)
    return ip_network((key.addr, key.len))


def _names(folders: Iterable[Path]) -> str:
    return " and ".join(str(folder) for folder in folders)


def _inode(path: Path) -> int:
    """Return what tells a pin from another one under its name, 0 when there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0
