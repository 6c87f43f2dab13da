"""The control loop: a pass on every event, after every failure, and as often as it is cheap.

A whole pass reads everything from the kernel. Where nothing but leases changed since one that left all
right, a short pass carries out what they alter; whatever speaks against it brings a whole one at once.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, replace

from flannel_ebpf.agent import health
from flannel_ebpf.agent.firewall_side import FirewallSide
from flannel_ebpf.agent.join import choose_uplink, claim_of
from flannel_ebpf.agent.reconcile import Outcome, Reconciler
from flannel_ebpf.agent.status_file import Report
from flannel_ebpf.base.config import NetworkConfig, UdpConfig
from flannel_ebpf.base.errors import ConfigError, DeviceUnsupported, KernelError
from flannel_ebpf.base.family import Address
from flannel_ebpf.base.model import Claim, Endpoint, Uplink, named
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, udp
from flannel_ebpf.host import subnet_env
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import same_uplink
from flannel_ebpf.leases.cluster import Cluster, View
from flannel_ebpf.leases.lease_keeper import LeaseKeeper

log = logging.getLogger(__name__)

SHORTEST = 1.0
"""Seconds at least between whole passes that nothing asked for; they find what makes no event."""
SHARE = 0.003
"""Part of one CPU that such passes may take: the larger the cluster, the rarer they are (60 s at most)."""
FIRST_RETRY, LONGEST_RETRY = 0.2, 10.0
"""Seconds after a pass with failures, doubling."""


class Wake:
    """Set from any thread, waited for by the loop's."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._whole = False

    def for_leases(self) -> None:
        """Start a pass: the leases are others, and as far as the caller knows nothing else changed."""
        self._event.set()

    def for_all(self) -> None:
        """Start a pass that looks at everything."""
        self._whole = True  # before the other: whoever is woken by that must find this
        self._event.set()

    def wait(self, seconds: float) -> None:
        """Wait until a pass is asked for, at most so long."""
        self._event.wait(seconds)

    def take(self) -> bool:
        """Say whether everything must be looked at; whatever was asked for before this call is answered."""
        self._event.clear()
        if not self._whole:
            return False
        self._whole = False  # only now: one that was set since the look above must not be lost
        return True


@dataclass(frozen=True, slots=True)
class Parts:
    """What a pass works with; each is opened and closed by the daemon."""

    kernel: KernelNetwork
    reconciler: Reconciler
    firewall: FirewallSide
    report: Report
    cluster: Cluster
    keeper: LeaseKeeper


class Loop:
    """Runs passes until `stop`; `wake` starts one at once.

    `ready` is true once a pass has left nothing to do, `last` what the latest pass found.
    """

    def __init__(self, options: Options, node: Node, parts: Parts) -> None:
        self._options = options
        self._node = node
        self._parts = parts
        self._announced: object = None
        self._retry = FIRST_RETRY
        self._problems: set[str] = set()
        self._said: frozenset[str] = frozenset()
        self._view = View()
        self._due = 0.0
        self.ready = False
        self.last: Outcome | None = None

    def run(self, stop: threading.Event, wake: Wake) -> None:
        """Reconcile until stopped."""
        while not stop.is_set():
            whole = wake.take()
            view = self._parts.cluster.view
            if not view.leases:
                self._due = time.monotonic() + self._parts.firewall.lifetime
            elif whole or not self._follow(view):
                self._due = self._attend(view) + time.monotonic()
            wake.wait(max(self._due - time.monotonic(), 0.0))

    def _follow(self, view: View) -> bool:
        """Do a short pass, if that is enough: neither due for a whole one, nor in doubt, nor failing."""
        if time.monotonic() >= self._due or not view.may_remove or view.skipped != self._view.skipped:
            return False
        try:
            outcome = self._parts.reconciler.follow(view.leases)
        except KernelError as error:
            log.debug("a whole pass instead of a short one: %s", error)
            return False
        if outcome is None:
            return False
        self._settle(outcome)
        self._close(view, outcome)
        return True

    def _attend(self, view: View) -> float:
        """Do one whole pass with all that belongs to it; return the seconds until the next."""
        begun = time.thread_time()
        self._problems = set()
        seen = self._parts.kernel.look()
        self._follow_uplink(seen)
        outcome = self._pass(view, seen)
        cost = time.thread_time() - begun
        unasked = min(max(cost / SHARE, SHORTEST), self._parts.firewall.lifetime)
        delay = self._settle(outcome) or unasked
        self._announce(outcome)
        self._close(view, outcome)
        return min(delay, outcome.again or delay)

    def _close(self, view: View, outcome: Outcome) -> None:
        self.last, self._view = outcome, view
        self._parts.report.write(self._node, self._parts.keeper.lease, view, outcome)

    def _pass(self, view: View, seen: Seen) -> Outcome:
        node = self._node
        try:
            subnet_env.update(self._options.subnet_file, _environment(node, self._options))
        except ConfigError as error:
            self._problems.add(str(error))  # flanneld, too, goes on without its file
        try:
            return self._parts.reconciler.run(node, view.leases, seen, may_delete=view.may_remove)
        except KernelError as error:
            return Outcome(errors=[error])

    def _follow_uplink(self, seen: Seen) -> None:
        """Take the uplink as it is now; a new address is published under the same subnet.

        An uplink that the options no longer find, because it was renamed, is followed by its index.
        """
        [stack] = self._node.stacks
        try:
            uplink, public_ip = choose_uplink(seen, self._options, stack.config)
        except ConfigError as error:
            renamed = same_uplink(seen, stack.uplink.ifindex, stack.uplink.ip)
            self._problems.add(f"uplink {(renamed or stack.uplink).name} is kept: {error}")
            self._take(renamed or stack.uplink, stack.public_ip)
            return
        if public_ip != stack.public_ip:
            log.warning("public IP changes from %s to %s", stack.public_ip, public_ip)
            self._parts.keeper.update(claim_of(stack.config, [(public_ip, stack.vtep_mac)]))
            self._announced = None
        self._take(uplink, public_ip)

    def _take(self, uplink: Uplink, public_ip: Address) -> None:
        [stack] = self._node.stacks
        self._node = Node((replace(stack, uplink=uplink, public_ip=public_ip),))

    def _announce(self, outcome: Outcome) -> None:
        """Say in the lease what programs stand here, as soon as they do: udp peers must know."""
        if outcome.errors or not isinstance(self._node.config.backend, UdpConfig):
            return
        data = udp.BPF_DATA if outcome.accelerated else None
        if data != self._announced:
            self._parts.keeper.update(Claim("", (Endpoint(self._node.stacks[0].public_ip, data),)))
            self._announced = data

    def _settle(self, outcome: Outcome) -> float:
        """Log what a pass did; return the seconds until it must be tried again, 0 when all is right."""
        if outcome.writes:
            log.info(
                "%d changes made: %d peers, %d pods, %s",
                outcome.writes,
                len(outcome.peers),
                outcome.pods,
                "BPF" if outcome.accelerated else "kernel path",
            )
        problems = self._problems | {_worded(error, self._node.config) for error in outcome.errors}
        problems |= {f"lease {one.key} is skipped: {one.why}" for one in outcome.skipped}
        if outcome.why_not:
            problems.add(f"no BPF on this host, packets take the kernel path: {outcome.why_not}")
        self._say(problems)
        if outcome.errors:
            delay, self._retry = self._retry, min(self._retry * 2, LONGEST_RETRY)
            return delay
        self._retry = FIRST_RETRY
        if not self.ready:
            self.ready = True
            health.notify_ready()
            log.info("ready: subnet %s, MTU in %s", named(self._node.subnets), self._options.subnet_file)
        return 0.0

    def _say(self, problems: set[str]) -> None:
        """Log each problem when it appears, not on every pass."""
        for problem in sorted(problems - self._said):
            log.warning("%s", problem)
        self._said = frozenset(problems)


def _worded(error: KernelError, config: NetworkConfig) -> str:
    return f"{error}; {udp.advice(config)}" if isinstance(error, DeviceUnsupported) else str(error)


def _environment(node: Node, options: Options) -> subnet_env.SubnetEnv:
    return subnet_env.SubnetEnv(node.config.networks, node.subnets, backends.mtu(node), options.ip_masq)
