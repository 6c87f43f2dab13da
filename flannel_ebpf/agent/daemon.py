"""`flannel-ebpf up`: join the network, then keep the kernel in line until told to stop.

Threads: this one reconciles; `Cluster` follows etcd, `LeaseKeeper` renews, `KernelMonitor` and `RulesMonitor`
hear of changes, `Prover` vouches. They carry a wake-up and its kind: each pass reads what it needs.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace

from flannel_ebpf.agent import memory
from flannel_ebpf.agent.bpf_settings import choose_attach, datapath_settings, open_datapath
from flannel_ebpf.agent.bpf_side import BpfSide
from flannel_ebpf.agent.firewall_side import FirewallSide
from flannel_ebpf.agent.join import (
    Stopped,
    choose_uplinks,
    persist,
    take_lease,
    with_told_addresses,
)
from flannel_ebpf.agent.kernel_side import KernelSide
from flannel_ebpf.agent.loop import Loop, Parts
from flannel_ebpf.agent.on_demand import OnDemand
from flannel_ebpf.agent.prover import Prover
from flannel_ebpf.agent.reconcile import Reconciler, Sides
from flannel_ebpf.agent.relay_side import RelaySide
from flannel_ebpf.agent.status_file import Report
from flannel_ebpf.agent.wake import Stop, Wake
from flannel_ebpf.base.config import NetworkConfig, UdpConfig
from flannel_ebpf.base.errors import LeaseLost, ThreadDied
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import named
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, Stack, backend_of
from flannel_ebpf.desired.firewall_rules import Tool
from flannel_ebpf.host.build import commit
from flannel_ebpf.host.lock import claim, network_lock
from flannel_ebpf.host.remembered import remember_sysctl
from flannel_ebpf.kernel.firewall.monitor import RulesMonitor
from flannel_ebpf.kernel.monitor import KernelMonitor
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.programs.in_use import Datapath
from flannel_ebpf.kernel.programs.pins import Pins
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.leases.source import LeaseSource, open_source

log = logging.getLogger(__name__)


def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT (status 0); raises FlannelError for what flanneld would exit on.

    A lost lease is raised too, after the loop has ended: the data path stays as it is.
    """
    memory.use_one_arena()
    memory.look_rarely()
    stop = Stop()
    wake = Wake()

    def end(_signal: int, _frame: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second signal kills, as with flanneld
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        stop.set()
        wake.for_all()

    signal.signal(signal.SIGUSR1, lambda _signal, _frame: wake.for_all())  # something was asked for in a file
    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)
    with ExitStack() as stack:
        try:
            Daemon(options, stop, wake, stack).run()
        except Stopped as error:
            log.info("%s", error)
    log.info("stopped; the lease, the overlay and its programs stay")
    return 0


class Daemon:
    """One run of the daemon. What it opens goes onto `stack` and is closed in reverse."""

    def __init__(self, options: Options, stop: Stop, wake: Wake, stack: ExitStack) -> None:
        self._options = options
        self._stop = stop
        self._wake = wake
        self._stack = stack
        self._fatal: LeaseLost | ThreadDied | None = None
        self._loop: Loop | None = None

    def run(self) -> None:
        """Join, then reconcile until stopped.

        Raises LeaseLost when the subnet went to another node, ThreadDied when a helper thread did: half a
        daemon would look alive and keep nothing right. Stopped when it was told to stop before it had joined.
        """
        try:
            self._join()
        except Stopped:
            if self._fatal is None:
                raise
        if self._fatal:
            raise self._fatal

    def _join(self) -> None:
        options = self._options
        self._stack.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = self._on_bug
        if options.healthz_port:
            from flannel_ebpf.agent.health import HealthServer  # noqa: PLC0415 - 2 MB, rarely asked for

            server = HealthServer(options.healthz_ip, options.healthz_port, self._is_ready)
            self._stack.enter_context(server)
        source = open_source(options, self._on_lost)
        self._stack.callback(source.close)
        threading.Thread(target=self._close_at_stop, args=(source,), name="closer", daemon=True).start()
        log.info("waiting for %s", source.where)
        config = persist(source.network_config, "reading the network config", self._stop)
        log.info("network %s, backend %s", named(config.networks), config.backend_type)
        self._lock(config)
        options = persist(lambda: with_told_addresses(options, source), "reading our own node", self._stop)
        self._options = options
        with RouteSocket() as netlink:
            ways = choose_uplinks(Seen(netlink), options, config)
        node = persist(
            lambda: take_lease(source, options, config, ways),
            "taking a lease",
            self._stop,
        )
        self._keep(node, source)

    def _lock(self, config: NetworkConfig) -> None:
        """Make sure that nobody else on this host serves this network or uses its device."""
        enter = self._stack.enter_context
        enter(network_lock(self._options.state_dir, config.network))
        for network in config.networks:
            enter(claim(f"network {network}", "stop that one, or give this one another --etcd-prefix"))
        overlays = (backend_of(config).overlay_name(config, pool.family) for pool in config.pools)
        for overlay in filter(None, overlays):
            enter(claim(f"device {overlay}", "each vxlan network of a host needs a Backend.VNI of its own"))
        written = str(self._options.subnet_file.resolve())[-80:]  # a socket's name has 107 characters
        enter(claim(f"subnet file {written}", "each network of a host needs a --subnet-file of its own"))

    def _keep(self, node: Node, source: LeaseSource) -> None:
        """Open the edges, start the threads that wake the loop, and run it."""
        options, stack = self._options, self._stack
        kernel = stack.enter_context(KernelNetwork())
        sides = self._sides(node, kernel)
        reconciler = Reconciler(kernel, sides, OnDemand(options.peers, sides.bpf), lambda: source.servers)
        report = Report(options)
        programmed = sides.kernel.programmed(node) | sides.bpf.programmed(node)
        source.follow(programmed, self._wake.for_leases)
        overlays = {it.family: backends.overlay_of(it) for it in node.stacks}
        stack.enter_context(
            KernelMonitor(self._wake.for_all, overlays, kernel.ports, kernel.echoes, kernel.interest)
        )
        stack.enter_context(RulesMonitor(sides.firewall.changed, sides.bpf.touched))
        self._loop = Loop(options, node, Parts(kernel, reconciler, sides.firewall, report, source))
        self._serve_metrics(node.config, self._loop)
        self._loop.run(self._stop, self._wake)

    def _sides(self, node: Node, kernel: KernelNetwork) -> Sides:
        options, network = self._options, node.config.network
        families = node.stacks[:1] if isinstance(node.config.backend, UdpConfig) else node.stacks
        bpf, *others = (self._bpf_side(one, families, kernel) for one in families)
        tool: Tool = "nftables" if node.config.enable_nftables else "iptables"
        return Sides(
            KernelSide(
                kernel,
                lambda old: remember_sysctl(options.state_dir, network, old.path, old.value),
                blackhole=options.ip_blackhole_route,
            ),
            FirewallSide(options, tool, self._wake.for_all),
            bpf,
            RelaySide(options, self._wake.for_all, batch=bpf.bpf is None),
            *others,
        )

    def _bpf_side(self, stack: Stack, families: Sequence[Stack], kernel: KernelNetwork) -> BpfSide:
        """Return the side of one family's programs, among those of all `families`.

        What an interface has but once, the XDP program, is the first one's, and room for headers the last
        one's, whose headers are the longest.
        """
        options, first, last = self._options, families[0], families[-1]
        root = options.bpf_pin_root if stack is first else Pins.of(first.network, options.bpf_pin_root).folder
        bpf, caps, why_not = open_datapath(options, stack.network, root)
        attach = choose_attach(options) if bpf else "clsact"
        if bpf:
            self._stack.enter_context(bpf)
            log.info("%s programs are attached by %s", stack.family, attach)
        uplink_v6 = stack.uplink.name if stack.family is Family.V6 else ""
        settings = datapath_settings(options, caps, attach, uplink_v6)
        return BpfSide(
            bpf,
            kernel.hooks,
            replace(
                settings,
                xdp_modes=settings.xdp_modes if stack is first else (),
                headroom=settings.headroom and stack is last,
            ),
            root,
            options.state_dir,
            why_not,
            required=options.datapath == "ebpf" and stack is first,
            prover=self._prover(bpf) if stack.family is Family.V4 else None,
            pod_grace=options.pod_grace if attach == "clsact" else 0.0,
            family=stack.family,
            first=stack is first,
        )

    def _prover(self, bpf: Datapath | None) -> Prover | None:
        """Return who proves which pods rules concern, where that makes a difference."""
        if bpf is None or self._options.fastpath == "subnets":
            return None
        stateless = self._options.fastpath == "auto"
        prover = Prover(self._options, bpf.vouch, self._wake.for_all, stateless=stateless)
        return self._stack.enter_context(prover)

    def _serve_metrics(self, config: NetworkConfig, loop: Loop) -> None:
        """Answer /metrics on the address that was asked for, if any."""
        address, _, port = self._options.metrics_listen.rpartition(":")
        if not port:
            return
        from flannel_ebpf.agent.health import HealthServer  # noqa: PLC0415 - 2 MB, rarely asked for
        from flannel_ebpf.agent.metrics import NodeCollector, registry  # noqa: PLC0415 - likewise

        overlay = backend_of(config).overlay_name(config, config.pools[0].family)
        collector = NodeCollector(
            config.network, self._options.bpf_pin_root, overlay, lambda: loop.last, commit()
        )
        server = HealthServer(
            address, int(port), self._is_ready, registry(collector), source="--metrics-listen"
        )
        self._stack.enter_context(server)

    def _is_ready(self) -> bool:
        return self._loop is not None and self._loop.ready

    def _close_at_stop(self, source: LeaseSource) -> None:
        """End requests that hang as soon as the daemon is told to stop: all threads wait for them."""
        self._stop.wait()
        source.interrupt()

    def _on_lost(self, error: LeaseLost) -> None:
        self._end(error)

    def _on_bug(self, bug: threading.ExceptHookArgs) -> None:
        name = bug.thread.name if bug.thread else "unknown"
        trace = (bug.exc_type, bug.exc_value or bug.exc_type(), bug.exc_traceback)
        log.critical("thread %s ended with a bug", name, exc_info=trace)
        self._end(ThreadDied(f"a bug ended thread {name}: {bug.exc_type.__name__}: {bug.exc_value}"))

    def _end(self, error: LeaseLost | ThreadDied) -> None:
        self._fatal = self._fatal or error
        self._stop.set()
        self._wake.for_all()
