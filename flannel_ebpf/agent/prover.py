"""Which pods no rule concerns, proved for each pass and vouched for until a rule changes.

Three threads meet here: the loop proves, the monitor of rules tells what was touched, and one of our own
vouches. Programs carry free pods' packets past the kernel only as long as somebody vouches: whoever hears of
a change first takes that back, before anything is read again; a daemon that is dead does so by its silence.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import TracebackType

from flannel_ebpf.agent.side import Round
from flannel_ebpf.base.config import VxlanConfig
from flannel_ebpf.base.errors import BpfError, KernelError
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Peer, Stack
from flannel_ebpf.desired.proof.follow import Memory
from flannel_ebpf.desired.proof.passages import Facts
from flannel_ebpf.desired.proof.proof import Guard, Level, Proof, prove
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges, of_network, size, up_to, without
from flannel_ebpf.kernel import beside_rules
from flannel_ebpf.kernel.firewall.connections import translated_pods
from flannel_ebpf.kernel.firewall.netfilter import Netfilter
from flannel_ebpf.kernel.firewall.parts import Part
from flannel_ebpf.kernel.proof_facts import facts_of

log = logging.getLogger(__name__)

GATHER = 0.05
"""Seconds in which further changes join the first before a pass is asked for; nobody vouches meanwhile."""
LEFTOVERS = 10.0
"""Seconds after which connections are looked at again that outlive the rule which translated them."""


class Prover:
    """Keeps a proof for the IPv4 stack.

    `vouch` is told until when free pods may go past the kernel, on the clock of time.monotonic; 0: no longer.
    Without `stateless` no pod is free, and only rules that judge packets one by one matter.
    """

    def __init__(
        self, options: Options, vouch: Callable[[float], None], wake: Callable[[], None], *, stateless: bool
    ) -> None:
        self.proof = Proof()
        self.due = 0.0
        """Seconds after the last proof at which there is something to look at again; 0: nothing waits."""
        self.peers_matter = False
        """Whether a new peer's address could change the proof."""
        self._tell, self._wake, self._stateless = vouch, wake, stateless
        self._lifetime = options.revalidate
        self._legacy_every = min(float(options.iptables_resync), options.revalidate)
        self._rules = Netfilter(4)
        self._memory = Memory()
        self._memory_of: tuple[Mapping[str, Ranges], bool] | None = None
        self._free_before: Ranges = NOTHING
        self._lock = threading.Lock()
        self._touched: set[Part] | None = set()  # None: anything may have changed
        self._changes, self._proved, self._settled = 0, -1, False
        self._digest: int | None = None
        self._stirred, self._closed = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="prover", daemon=True)
        self._thread.start()

    def __enter__(self) -> Prover:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; what was vouched for runs out by itself."""
        self._closed.set()
        self._stirred.set()
        self._thread.join()
        self._rules.close()

    def touched(self, parts: Collection[Part] | None) -> None:
        """Take back what was vouched for if these parts of the rules count; None: any may have changed."""
        if parts is not None and not any(self._rules.has_read(part) for part in parts):
            return
        with self._lock:
            self._touched = None if parts is None or self._touched is None else {*self._touched, *parts}
            self._changes += 1
            self._settled = False
            self._vouch(0.0)
        self._stirred.set()

    def prove(self, stack: Stack, peers: Sequence[Peer], now: Round) -> Proof:
        """Return the proof for what stands now; it counts once `settle` says that the maps have it.

        `peers` are those of the stack's family.
        """
        with self._lock:
            changes, touched, self._touched = self._changes, self._touched, set()
            self._settled = False
        try:
            self._forget(touched)
            before, self.proof = self.proof, self._prove(stack, peers, now)
        except KernelError as error:
            self._rules.forget_all()
            why = f"the rules cannot be read: {error}"
            before, self.proof = (
                self.proof,
                Proof(guards=(Guard(of_network(stack.subnet), Level.FLOWS, why),)),
            )
        self._proved = changes
        if self.proof != before:
            self._say()
        return self.proof

    def take_back(self) -> None:
        """Vouch for nothing until `settle`."""
        with self._lock:
            self._settled = False
            self._vouch(0.0)

    def settle(self) -> None:
        """Vouch for the last proof from now on, unless something has changed since."""
        with self._lock:
            self._settled = self._proved == self._changes
            self._free_before = self.proof.free
            self._renew()

    def _forget(self, touched: set[Part] | None) -> None:
        if touched is None:
            self._rules.forget_all()
            self._memory = Memory()
        else:
            self._memory.forget(self._rules.forget(touched))

    def _prove(self, stack: Stack, peers: Sequence[Peer], now: Round) -> Proof:
        if not self._rules.has_legacy:
            self._digest = self._rules.legacy_digest()  # before they are read: what changes then is noticed
        facts = facts_of(stack, peers, now.ports, now.seen, stateless=self._stateless)
        beside = beside_rules.guards(stack, peers, facts, now.seen) if self._stateless else []
        if self._memory_of != (facts.kinds, facts.invalid_is_nobody):
            self._memory, self._memory_of = Memory(), (facts.kinds, facts.invalid_is_nobody)
        proof = self._follow(facts, beside)
        left = self._leftovers(facts, proof.free)
        self.due = LEFTOVERS if left else 0.0
        if left:
            why = "a connection of before still runs that is translated"
            beside = [*beside, Guard(left, Level.FLOWS, why)]
            proof = self._follow(facts, beside)
        self.peers_matter = self._stateless and beside_rules.peers_matter(stack, now.seen)
        self.peers_matter = self.peers_matter or self._depends_on_peers(stack, facts, beside, proof)
        return proof

    def _follow(self, facts: Facts, beside: Collection[Guard]) -> Proof:
        return prove(self._rules.bases(), self._rules.chain, facts, beside, self._memory)

    def _leftovers(self, facts: Facts, free: Ranges) -> Ranges:
        """Return pods that were not free until now and still have connections which conntrack translates."""
        new = without(free, self._free_before)
        return translated_pods(facts.version, new, facts.others) if new else NOTHING

    def _depends_on_peers(self, stack: Stack, facts: Facts, beside: Collection[Guard], proof: Proof) -> bool:
        """Say whether the proof were another if peers had any address, and any way that they can have."""
        if facts.tunnel is None:
            return False
        backend = stack.config.backend
        direct = isinstance(backend, VxlanConfig) and backend.direct_routing
        anybody = replace(
            facts,
            tunnel=replace(facts.tunnel, peers=up_to(32)),
            overlays=facts.overlays | ({stack.uplink.name} if direct else set()),
        )
        found = self._follow(anybody, beside)
        return (found.free, found.of_level(Level.KERNEL)) != (proof.free, proof.of_level(Level.KERNEL))

    def _say(self) -> None:
        free = size(self.proof.free)
        if self._stateless:
            log.info("%d addresses of this node's subnet are free of all rules", free)
        for guard in self.proof.guards[:3]:
            log.info("pods go by %s because of %s", guard.level.name.lower(), guard.why)

    def _run(self) -> None:
        looked = time.monotonic()
        while not self._closed.is_set():
            if self._stirred.wait(min(self._lifetime / 3, self._legacy_every)):
                self._stirred.clear()
                if not self._closed.wait(GATHER):
                    self._wake()
                continue
            if time.monotonic() - looked >= self._legacy_every:
                looked = time.monotonic()
                self._look_at_legacy()
            with self._lock:
                self._renew()

    def _vouch(self, until: float) -> None:
        with suppress(BpfError):  # what was told before runs out by itself
            self._tell(until)

    def _renew(self) -> None:
        if self._settled and self._stateless:
            self._vouch(time.monotonic() + self._lifetime)

    def _look_at_legacy(self) -> None:
        """Notice changes of iptables-legacy, of which nobody tells."""
        try:
            digest = self._rules.legacy_digest()
        except KernelError as error:
            log.debug("%s", error)
            return
        if digest != self._digest:
            self._digest = digest
            self.touched(None)
