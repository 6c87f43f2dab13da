"""The BPF side in a pass: which programs are loaded, and what maps and hooks should hold."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

from flannel_ebpf.agent.prover import Prover
from flannel_ebpf.agent.side import Round, scope_of
from flannel_ebpf.base.errors import BpfError, KernelError, ProgramsRequired
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.kept import same_objects
from flannel_ebpf.contract import abi, enums, features
from flannel_ebpf.contract.enums import Fastpath
from flannel_ebpf.desired import backends, demand
from flannel_ebpf.desired.backends import Node, Peer, Stack
from flannel_ebpf.desired.bpf import conntrack, contents
from flannel_ebpf.desired.bpf.levels import Levels
from flannel_ebpf.desired.bpf.optional import Extras
from flannel_ebpf.desired.bpf.pod_grace import Newcomers
from flannel_ebpf.desired.objects import (
    Filter,
    HeadroomPort,
    MapEntry,
    Object,
    PinFolder,
    Scope,
    Sysctl,
    XdpProgram,
)
from flannel_ebpf.desired.plan import Failure, Op, Put
from flannel_ebpf.desired.proof.proof import Proof
from flannel_ebpf.host import watching
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.firewall.parts import Part
from flannel_ebpf.kernel.hooks.edge import Hooks
from flannel_ebpf.kernel.hooks.grace import give_back, hurried
from flannel_ebpf.kernel.hooks.ownership import name_in
from flannel_ebpf.kernel.netlink import ethtool
from flannel_ebpf.kernel.pods import pod_macs
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.in_use import Datapath
from flannel_ebpf.kernel.programs.loader import Loaded
from flannel_ebpf.kernel.programs.readout import every_peer

log = logging.getLogger(__name__)

AT_ONCE = 1e-3

MOST_HOOKS, MOST_SLOW_HOOKS = 1000, 50
"""Hooks that one pass changes, where the kernel hurries and where each takes 10 ms."""

_EXPEDITED = "rcu-expedited"
_OF_PEERS = ("fl_peers", "fl_vteps")
_OF_OTHER_LENGTH = "{} leases are no /{} as the others are: the kernel carries their packets"
_CROWDED = (
    "{} leases, and the programs' tables hold {}: the others take the kernel path, and --source-check is "
    "off, because it does not know them"
)


class BpfSide:
    """Programs, their maps and the hooks that they stand on, beside the kernel path.

    `bpf` is None when the kernel path alone is used; `why_not` then says why, if it was not asked for.
    With `required`, a host that cannot run the programs from the start is an error; otherwise a pass goes on
    without them. `pod_grace`: seconds that programs keep away from a pod's new veth. `first`: of a dual-stack
    network's two sides that which asks for conntrack's settings, of which there is one for both.
    """

    kinds = (PinFolder, MapEntry, Filter, XdpProgram, HeadroomPort)

    def __init__(
        self,
        bpf: Datapath | None,
        hooks: Hooks,
        settings: contents.Settings,
        pin_root: Path,
        state_dir: Path,
        why_not: str = "",
        *,
        required: bool,
        prover: Prover | None = None,
        pod_grace: float = 0.0,
        family: Family = Family.V4,
        first: bool = True,
    ) -> None:
        self.bpf = bpf
        self.attach = settings.attach
        self.why_not = why_not
        self.lacks = features.names(~settings.caps)
        """The kernel features that the programs do without."""
        self.due = 0.0
        """Seconds after the last round at which there is something to do in any case; 0: nothing waits."""
        self.slots: contents.Slots | None = None
        """The peers' indexes in fl_peer_stats as the last round had them, None without programs."""
        self.warnings: list[str] = []
        """What about this host endangers connections, in the last round."""
        self.proof: Proof | None = None
        """What rules and such concern which pods, in the last round; None where it makes no difference."""
        self._family = family
        self._first = first
        self._hooks = hooks
        self._settings = settings
        self._newcomers = Newcomers(pod_grace)
        self._extras = Extras(settings)
        self._pin_root = pin_root
        self._state_dir = state_dir
        give_back(state_dir / _EXPEDITED)
        self._required = required
        self._prover = prover
        self._settled = True
        self._loaded: Loaded | None = None
        self._ever_loaded = False
        self._entries: list[MapEntry] = []
        self._room: int | None = None
        self._length = 0
        self._others = 0
        self._made_of: Sequence[Peer] = ()
        self._held: list[MapEntry] = []
        self._made: list[MapEntry] = []
        self._slots: contents.Slots = {}

    @property
    def slot_count(self) -> int:
        """How many peers' traffic can be told apart; 0 without programs."""
        return self.bpf.slots() if self.bpf and self._loaded else 0

    @property
    def told(self) -> list[str]:
        """What an operator should know of programs that another side's go on without."""
        missing = [f"{self._family} has no programs, and takes the kernel path: {self.why_not}"]
        return [*self.warnings, *(missing if self.bpf and self.why_not else ())]

    @property
    def peers_matter(self) -> bool:
        """Whether the proof could be another with a new peer."""
        return self.proof is not None and self._prover is not None and self._prover.peers_matter

    @property
    def accelerated(self) -> bool:
        """Whether programs were in use in the last round."""
        return self._loaded is not None

    def touched(self, parts: Collection[Part] | None) -> None:
        """Hear which parts of firewall rules changed, None: any; in any thread."""
        if self._prover:
            self._prover.touched(parts)

    def programmed(self, node: Node) -> frozenset[Network]:
        """Return the remote subnets that the programs of a former process know."""
        try:
            return frozenset(every_peer(node.config.network, self._pin_root)) if self.bpf else frozenset()
        except BpfError as error:
            log.warning("what a former process left in the programs' maps: %s", error)
            return frozenset()

    @property
    def caps(self) -> enums.Cap:
        """What this kernel's programs can do."""
        return self._settings.caps

    def sent(self) -> dict[Network, float]:
        """Return when the kernel last sent packets to peers, as far as programs saw it and are in use."""
        return self.bpf.sent() if self.bpf and self._loaded else {}

    def asked(self) -> dict[Network, int]:
        """Return the peers without kernel objects that packets went to, with how many; each time others."""
        if not (self.bpf and self._loaded):
            return {}
        try:
            return self.bpf.asked(demand.MOST_NEW)
        except BpfError as error:
            raise KernelError(f"reading what was asked for: {error}", error.code) from error

    def knows(self, peers: int) -> bool:
        """Say whether programs are in use whose maps have room for so many peers."""
        return self.accelerated and self._room is not None and peers <= self._room

    def stand_aside(self) -> None:
        """Leave every packet to a peer to the kernel until the next round has loaded other programs.

        Those in use have this node's former address in them, and loading takes half a second.
        """
        if self.bpf and self._loaded:
            with suppress(BpfError):  # then packets go on for that half second as they went
                entries = [one for one in self.bpf.read() if one.map == "fl_peers"]
                changed = zip(contents.aside(entries), entries, strict=True)
                self.bpf.apply([Put(new, old) for new, old in changed])

    def wanted(self, now: Round) -> list[Object]:
        """Return map entries, hooks and what goes with them, once the programs for this node are loaded.

        Some entries are learned by the programs and stay. Raises KernelError; ProgramsRequired when they are
        `required` and cannot run from the start.
        """
        self.slots, self._entries, self.proof = None, [], None
        stack = now.node.stack(self._family)
        if stack is None or self._rests(now):
            return []
        peers = list(contents.carried(now.peers, self._family))
        self._loaded = self._load(stack, peers, now)
        if self._loaded is None or self.bpf is None:
            return []
        node, seen, programs = now.node, now.seen, self._loaded.programs
        try:
            self._entries = self.bpf.read()
        except BpfError as error:
            raise KernelError(f"reading the programs' maps: {error}", error.code) from error
        old = self._newcomers.settled(now.ports, time.monotonic())
        self.due = self._newcomers.due
        levels = self._levels(stack, peers, now)
        pods = contents.pod_entries(self._entries, now.ports, pod_macs(seen, now.ports, self._family), levels)
        self._settle([*levels.entries, *pods])
        wanted: list[Object] = [
            *(PinFolder(str(folder)) for folder in (self._loaded.maps, *self._loaded.folders)),
            *self._peer_entries(self.bpf, now.peers),
            *contents.port_entries(now.ports),
            *levels.entries,
            *pods,
            *contents.node_entries(_own_addresses(stack, now)),
            *contents.filters(old, stack.uplink.ifindex, _overlay(stack, now), programs, self.attach),
            *self._extras.wanted(node, now.ports, programs),
        ]
        return [*wanted, *self._conntrack()] if self._first else wanted

    def _levels(self, stack: Stack, peers: Sequence[Peer], now: Round) -> Levels:
        """Have the rules looked at, and return what the programs should know of them."""
        if self._prover is None:
            return Levels(Proof())
        self.proof = self._prover.prove(stack, peers, now)
        self.due = min(filter(None, (self.due, self._prover.due)), default=0.0)
        return Levels(self.proof)

    def _settle(self, wanted: Collection[MapEntry]) -> None:
        """Let the proof count once all that was learned knows of it: one pass writes, the next sees it."""
        if self._prover is None:
            return
        there = {one for one in self._entries if one.map in {"fl_levels", "fl_pods"}}
        levels = {one for one in there if one.map == "fl_levels"}
        self._settled = levels <= {*wanted} <= there
        if self._settled:
            self._prover.settle()
        else:
            self._prover.take_back()

    def _peer_entries(self, bpf: Datapath, peers: Sequence[Peer]) -> list[MapEntry]:
        """Return what the maps should hold of peers: the very same objects while peers and maps stay.

        Peers that the maps have no room for are left to the kernel path.
        """
        held = [entry for entry in self._entries if entry.map in _OF_PEERS]
        if peers is not self._made_of or not same_objects(held, self._held):
            fitting = list(contents.carried(peers, self._family))[: self._room]
            hashed = contents.of_length(fitting, self._length)
            self._others = len(fitting) - len(hashed)
            self._slots = contents.assign_slots(hashed, contents.slots_in(held, hashed), bpf.slots())
            self._made = contents.peer_entries(fitting, self._slots)
            self._entries = bpf.adopt(self._made)
            held = [entry for entry in self._entries if entry.map in _OF_PEERS]
            self._made_of, self._held = peers, held
        self.slots = self._slots
        if self._others:
            self.warnings.append(_OF_OTHER_LENGTH.format(self._others, self._length))
        return self._made

    def _conntrack(self) -> list[Sysctl]:
        """Return what conntrack must be told, where it takes part; note what of it endangers connections."""
        if self._settings.fastpath == Fastpath.SUBNETS:
            return []
        values = {path: value for path in conntrack.PATHS if (value := sysctl.read(path)) is not None}
        self.warnings += conntrack.warnings(values, self._settings.revalidate_ms / 1000)
        return conntrack.wanted(values)

    def _rests(self, now: Round) -> bool:
        """Say whether all stays as it is in this round: the device that programs stand on is broken."""
        stack = now.node.stack(self._family)
        return stack is not None and backends.overlay_of(stack) in now.broken

    def _load(self, stack: Stack, peers: Sequence[Peer], now: Round) -> Loaded | None:
        """Have the programs for this node and these peers loaded; None without them."""
        if self.bpf is None:
            return None
        self.warnings = []
        try:
            loaded = self.bpf.load(self._constants(stack, peers, now))
            self._room = self.bpf.room()
            if len(peers) > self._room:
                self.warnings = [_CROWDED.format(len(peers), self._room)]
                loaded = self.bpf.load(self._constants(stack, peers, now))
            self.bpf.beat(self._settings.stand_aside, _overlay(stack, now))
        except BpfError as error:
            if self._required and self._ever_loaded:
                raise KernelError(f"loading the programs: {error}", error.code) from error
            if self._required:
                raise ProgramsRequired(str(error), error.code) from error
            self.why_not = str(error)
            return None
        self.why_not, self._ever_loaded = "", True
        return loaded

    def _constants(self, stack: Stack, peers: Sequence[Peer], now: Round) -> abi.Config:
        config = contents.constants(stack, peers, self._settings)
        self._length = config.peer_len
        if self._room is not None and len(peers) > self._room:
            config = replace(config, source_check=enums.Check.OFF)
        config = replace(config, monitor=watching.sample(self._state_dir, now.node.config.network))
        if config.backend != enums.Mode.UDP:
            return config
        return replace(config, uplink_finishes=ethtool.finishes(stack.uplink.name))

    def read(self, now: Round, wanted: Sequence[Object]) -> Iterable[Object]:
        """Return what stands on hooks, what the maps in use hold, and every folder of pins."""
        stack = now.node.stack(self._family)
        if stack is None or self._rests(now):
            return []
        scope = scope_of(stack)
        try:
            pinned = pins.Pins.of(scope.network, self._pin_root)
            folders = pinned.generations()
        except BpfError as error:
            raise KernelError(str(error), error.code) from error
        return [
            *self._hooks.read(now.seen, scope, partial(name_in, scope.network, pinned=pinned.programs)),
            *self._entries,
            *(PinFolder(str(one.path)) for one in folders),
        ]

    def apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Carry out operations on pins, maps and hooks; return those that failed.

        What is only refused by this host is none: it is left out from the next pass on, which comes at once.
        """
        failures: list[Failure] = []
        for kind, group in groupby(ops, lambda op: type(op.obj)):
            batch = list(group)
            if kind is PinFolder:
                failures += pins.apply(batch)
            elif kind is MapEntry:
                failed = self.bpf.apply(batch) if self.bpf else []
                self.due = self.due if failed or self._settled else AT_ONCE
                failures += failed
            else:
                failures += self._apply_hooks(batch, scope)
        refused = self._extras.refused(failures)
        self.due = AT_ONCE if refused else self.due
        return [failure for failure in failures if failure not in refused]

    def _apply_hooks(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Change hooks, so many that a pass does not take long; the next pass, at once, does more."""
        mark = self._state_dir / _EXPEDITED
        with hurried(len(ops), mark):
            most = MOST_HOOKS if mark.exists() else MOST_SLOW_HOOKS
            now, later = ops[:most], ops[most:]
            failures = self._hooks.apply(now, scope, self.bpf.program_fds() if self.bpf else {})
        self.due = AT_ONCE if later else self.due
        return failures


def _overlay(stack: Stack, now: Round) -> int:
    """Return the ifindex of the backend's device, 0 without one."""
    return now.seen.index_of(backends.overlay_of(stack))


def _own_addresses(stack: Stack, now: Round) -> dict[Address, int]:
    """Return the node's addresses inside its subnet, with their devices."""
    subnet = stack.subnet
    found = ((one.interface.ip, one.ifindex) for one in now.seen.addresses(stack.family))
    return {address: ifindex for address, ifindex in found if address in subnet}
