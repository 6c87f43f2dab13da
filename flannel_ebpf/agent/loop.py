"""The control loop: a pass on every event, after every failure, and as often as it is cheap.

A whole pass reads everything from the kernel. Where nothing but leases changed since one that left all
right, a short pass carries out what they alter; whatever speaks against it brings a whole one at once.
"""

from __future__ import annotations

import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from flannel_ebpf.agent import memory, supervisor
from flannel_ebpf.agent.budget import Budget
from flannel_ebpf.agent.firewall_side import FirewallSide
from flannel_ebpf.agent.identity import Identity
from flannel_ebpf.agent.join import claim_of
from flannel_ebpf.agent.reconcile import Outcome, Reconciler
from flannel_ebpf.agent.status_file import Report
from flannel_ebpf.agent.wake import Stop, Wake
from flannel_ebpf.base import tally
from flannel_ebpf.base.config import NetworkConfig, UdpConfig
from flannel_ebpf.base.errors import (
    ConfigError,
    DeviceUnsupported,
    FlannelError,
    KernelError,
    ProgramsRequired,
)
from flannel_ebpf.base.model import named
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, udp
from flannel_ebpf.host import subnet_env
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.leases.snapshot import View
from flannel_ebpf.leases.source import LeaseSource

log = logging.getLogger(__name__)

SHORTEST = 1.0
"""Seconds at least between whole passes that nothing asked for; they find what makes no event."""
SHARE = 0.003
"""Part of one CPU that such passes may take: the larger the cluster, the rarer they are (60 s at most)."""
FIRST_RETRY, LONGEST_RETRY = 0.2, 10.0
"""Seconds after a pass with failures, doubling."""
FAILING_SHARE = 0.03
"""Part of one CPU that tries may take of what concerns single peers and pods."""
ASK = 1.0
"""Seconds between looks at which peers without kernel objects packets were sent to."""
MANY_WRITES = 1000
"""Operations after which a pass has used memory that the next ones do not need."""
MOST_SAID = 10
"""Problems that are logged one by one when many appear at once."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a pass works with; each is opened and closed by the daemon."""

    kernel: KernelNetwork
    reconciler: Reconciler
    firewall: FirewallSide
    report: Report
    source: LeaseSource


class Loop:
    """Runs passes until `stop`; `wake` starts one at once.

    `ready`: in the last pass that could be done, all stood that this node itself needs to carry packets, and
    subnet.env said so. `last` is what the latest pass found.
    """

    def __init__(self, options: Options, node: Node, parts: Parts) -> None:
        self._options = options
        self._node = node
        self._parts = parts
        self._identities = {stack.family: Identity(options) for stack in node.stacks}
        self._announced: bool | None = None
        self._notified = False
        self._retry = FIRST_RETRY
        self._problems: set[str] = set()
        self._said: frozenset[str] = frozenset()
        self._view = View()
        self._due = 0.0
        self._asked = False
        self._admit_due = 0.0
        self._budget = Budget()
        self._pulse = supervisor.watchdog_seconds()
        self._status = ""
        self.ready = False
        self.last: Outcome | None = None

    def run(self, stop: Stop, wake: Wake) -> None:
        """Reconcile until stopped. Raises ProgramsRequired at the start, and nothing else."""
        while not stop.is_set():
            self._asked |= wake.take()
            view, now = self._parts.source.view, time.monotonic()
            if not view.leases:
                self._due = now + self._parts.firewall.lifetime
            elif now < self._due and not self._asked and not self._follow(view):
                self._asked = True
            if view.leases and (now >= self._due or (self._asked and not self._budget.wait(now))):
                self._asked = False
                self._due = self._attend(view) + time.monotonic()
            if self._pulse < math.inf:
                supervisor.notify("WATCHDOG=1")
            self._admit()
            wake.wait(min(self._next() - time.monotonic(), self._pulse, self._asked_in()))

    def _admit(self) -> None:
        """Every second, where peers come on demand: give objects to those that packets were sent to."""
        now = time.monotonic()
        if self.last is None or self.last.used is None or now < self._admit_due:
            return
        self._admit_due = now + ASK
        try:
            outcome = self._parts.reconciler.admit()
        except FlannelError as error:
            log.debug("a whole pass instead of a look at what was asked for: %s", error)
            outcome = None
        if outcome is None:
            self._asked = True
        elif outcome.used != self.last.used:
            self._close(self._view, outcome)

    def _asked_in(self) -> float:
        """Return the seconds until it is time to look for peers that packets were sent to."""
        if self.last is None or self.last.used is None:
            return math.inf
        return max(self._admit_due - time.monotonic(), 0.0)

    def _next(self) -> float:
        """Return when there is something to do again, if nothing happens until then."""
        now = time.monotonic()
        return min(self._due, now + self._budget.wait(now)) if self._asked else self._due

    def _follow(self, view: View) -> bool:
        """Do a short pass, if that is enough: neither in doubt nor failing."""
        if view is self._view:
            return True
        if not view.may_remove or view.skipped != self._view.skipped:
            return False
        try:
            outcome = self._parts.reconciler.follow(view.leases)
        except FlannelError as error:
            log.debug("a whole pass instead of a short one: %s", error)
            return False
        if outcome is None:
            return False
        tally.count("passes", "short", "ok")
        self._tell(outcome)
        self._close(view, outcome)
        return True

    def _attend(self, view: View) -> float:
        """Do one whole pass with all that belongs to it; return the seconds until the next."""
        begun = time.thread_time()
        self._problems = set()
        outcome = self._survive(view)
        cost = time.thread_time() - begun
        self._budget.spend(cost, time.monotonic())
        _count(outcome, cost)
        sign_of_life = self._options.stand_aside / 3 or math.inf  # each pass gives the programs one
        delay = min(max(cost / SHARE, SHORTEST), self._parts.firewall.lifetime, sign_of_life)
        if outcome.stopped or outcome.failures:
            delay = self._retry if outcome.errors("own") else max(self._retry, cost / FAILING_SHARE)
            self._retry = min(self._retry * 2, LONGEST_RETRY)
        else:
            self._retry = FIRST_RETRY
        grown = self.last is None or outcome.writes > MANY_WRITES
        self._tell(outcome)
        self._close(view, outcome)
        if grown:
            memory.settle()
        due = [one.due for one in self._identities.values() if one.due]
        return min(delay, outcome.again or delay, *due)

    def _survive(self, view: View) -> Outcome:
        """Do one whole pass, whatever happens in it: what ended it is told and tried again."""
        try:
            return self._pass(view)
        except ProgramsRequired:
            raise
        except FlannelError as error:
            stopped = error
        except Exception as bug:
            stopped = KernelError(f"a bug stopped the pass: {type(bug).__name__}: {bug}")
            if str(stopped) not in self._said:
                log.exception("%s", stopped)
        return replace(self.last or Outcome(), failures=(), stopped=stopped, writes=0, again=0.0)

    def _pass(self, view: View) -> Outcome:
        seen = self._parts.kernel.look()
        before = self._node
        self._follow_uplink(seen)
        node = self._node
        if node.public_ips != before.public_ips:
            seen = self._take_address(view, seen)
        outcome = self._parts.reconciler.run(node, view.leases, seen, may_delete=view.may_remove)
        own = bool(outcome.errors("own"))
        if not own:
            try:  # last of all, as flannel does: who waits for the file starts pods
                subnet_env.update(self._options.subnet_file, _environment(node, self._options))
            except ConfigError as error:
                own = True
                self._problems.add(str(error))
            self._announce(outcome)
        self._settle(ready=not own)
        return outcome

    def _settle(self, *, ready: bool) -> None:
        """Note whether this node can carry packets; say so the first time, as flannel does."""
        self.ready = ready
        if ready and not self._notified:
            self._notified = True
            supervisor.notify("READY=1")
            self._parts.source.ready()
            log.info("ready: subnet %s, MTU in %s", named(self._node.subnets), self._options.subnet_file)

    def _close(self, view: View, outcome: Outcome) -> None:
        self.last, self._view = outcome, view
        self._parts.report.write(self._node, self._parts.source.lease, view, outcome, ready=self.ready)
        status = _in_a_line(self._node, outcome)
        if status != self._status:
            self._status = status
            supervisor.notify(f"STATUS={status}")

    def _follow_uplink(self, seen: Seen) -> None:
        """Take the uplink as it is now; a new address is published under the same subnets."""
        before, stacks = self._node, []
        for stack in before.stacks:
            identity = self._identities[stack.family]
            uplink, public_ip = identity.follow(stack, seen, time.monotonic())
            self._problems |= {identity.problem} - {""}
            if public_ip != stack.public_ip:
                log.warning("public IP changes from %s to %s", stack.public_ip, public_ip)
            stacks.append(replace(stack, uplink=uplink, public_ip=public_ip))
        self._node = Node(tuple(stacks))
        if self._node.public_ips != before.public_ips:
            self._publish(programs=False)

    def _publish(self, *, programs: bool) -> None:
        """Have our lease say where this node is, and whether programs stand here."""
        places = [(stack.public_ip, stack.vtep_mac) for stack in self._node.stacks]
        self._parts.source.update(claim_of(self._node.config, places, programs=programs))
        self._announced = programs

    def _take_address(self, view: View, seen: Seen) -> Seen:
        """Have the kernel's way lead from the new address at once; return what is seen after that."""
        with suppress(KernelError):  # the pass that follows meets it too
            self._parts.reconciler.take_address(self._node, view.leases, seen)
        return self._parts.kernel.look()

    def _announce(self, outcome: Outcome) -> None:
        """Say in the lease what programs stand here, as soon as they do: udp peers must know."""
        if outcome.failures or not isinstance(self._node.config.backend, UdpConfig):
            return
        if outcome.accelerated != self._announced:
            self._publish(programs=outcome.accelerated)

    def _tell(self, outcome: Outcome) -> None:
        """Log what a pass did, and each problem when it appears, not on every pass."""
        if outcome.writes:
            log.info(
                "%d changes made: %d peers, %d pods, %s",
                outcome.writes,
                outcome.peers,
                outcome.pods,
                "BPF" if outcome.accelerated else "kernel path",
            )
        errors = [*outcome.errors("own"), *outcome.errors("part")]
        problems = self._problems | {_worded(error, self._node.config) for error in errors}
        problems |= set(outcome.warnings)
        problems |= {f"lease {one.key} is skipped: {one.why}" for one in outcome.skipped}
        if outcome.why_not:
            problems.add(f"no BPF on this host, packets take the kernel path: {outcome.why_not}")
        new = sorted(problems - self._said)
        for problem in new[:MOST_SAID]:
            log.warning("%s", problem)
        if len(new) > MOST_SAID:
            log.warning("and %d more like these; `flannel-ebpf status` counts them", len(new) - MOST_SAID)
        self._said = frozenset(problems)


def _count(outcome: Outcome, cost: float) -> None:
    """Add a whole pass to the process's tally."""
    errors = [*outcome.errors("own"), *outcome.errors("part")]
    tally.count("passes", "whole", "failed" if errors else "ok")
    tally.count("pass_seconds", "whole", by=cost)
    for error in errors:
        tally.count("errors", type(error).__name__)


def _in_a_line(node: Node, outcome: Outcome) -> str:
    """Return what `systemctl status` shows of us."""
    failed = len(outcome.errors("own")) + len(outcome.errors("part"))
    path = f"BPF by {outcome.attach}" if outcome.accelerated else "kernel path"
    parts = [f"{named(node.subnets)} of {node.config.network}", f"{outcome.peers} peers", path]
    return ", ".join([*parts, f"{failed} FAILED"] if failed else parts)


def _worded(error: FlannelError, config: NetworkConfig) -> str:
    return f"{error}; {udp.advice(config)}" if isinstance(error, DeviceUnsupported) else str(error)


def _environment(node: Node, options: Options) -> subnet_env.SubnetEnv:
    return subnet_env.SubnetEnv(node.config.networks, node.subnets, backends.mtu(node), options.ip_masq)
