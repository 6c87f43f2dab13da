"""`flannel-ebpf up`: join the network, then keep the kernel in line until told to stop.

Threads: this one reconciles; `Cluster` follows etcd, `LeaseKeeper` renews, `KernelMonitor` hears of changes.
They carry nothing but a wake-up: each pass reads what it needs.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace

from flannel_ebpf import notify, subnet_env
from flannel_ebpf.backends import Node, backend_of, udp
from flannel_ebpf.before import remember_sysctl
from flannel_ebpf.cluster import Cluster, View
from flannel_ebpf.config import NetworkConfig, UdpConfig
from flannel_ebpf.errors import ConfigError, DeviceUnsupported, KernelError, LeaseLost, ThreadDied
from flannel_ebpf.etcd import EtcdClient, Registry, Watch
from flannel_ebpf.firewall import Firewall
from flannel_ebpf.health import HealthServer
from flannel_ebpf.join import Stopped, choose_uplink, lease_data, persist, read_config, take_lease
from flannel_ebpf.kernel.monitor import KernelMonitor
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.rules_monitor import RulesMonitor
from flannel_ebpf.lease_keeper import LeaseKeeper
from flannel_ebpf.lock import claim, network_lock
from flannel_ebpf.options import Options
from flannel_ebpf.reconcile import Outcome, Reconciler
from flannel_ebpf.relay_side import RelaySide
from flannel_ebpf.report import Report
from flannel_ebpf.rules import Tool
from flannel_ebpf.settings import datapath_settings, open_datapath

log = logging.getLogger(__name__)

SHORTEST = 1.0
"""Seconds at least between passes that nothing asked for; they find what makes no event."""
SHARE = 0.003
"""Part of one CPU that such passes may take: the larger the cluster, the rarer they are (60 s at most)."""
FIRST_RETRY, LONGEST_RETRY = 0.2, 10.0
"""Seconds after a pass with failures, doubling."""


def run(options: Options) -> int:
    """Run until SIGTERM or SIGINT (status 0); raises FlannelError for what flanneld would exit on.

    A lost lease is raised too, after the loop has ended: the data path stays as it is.
    """
    stop = threading.Event()
    wake = threading.Event()

    def end(_signal: int, _frame: object) -> None:
        stop.set()
        wake.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second signal kills, as with flanneld
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

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

    def __init__(
        self, options: Options, stop: threading.Event, wake: threading.Event, stack: ExitStack
    ) -> None:
        self._options = options
        self._stop = stop
        self._wake = wake
        self._stack = stack
        self._fatal: LeaseLost | ThreadDied | None = None
        self._ready = False
        self._announced: object = None
        self._last: Outcome | None = None
        self._retry = FIRST_RETRY
        self._problems: set[str] = set()
        self._said: frozenset[str] = frozenset()

    def run(self) -> None:
        """Join, then reconcile until stopped.

        Raises LeaseLost when the subnet went to another node, ThreadDied when a helper thread did: half a
        daemon would look alive and keep nothing right.
        """
        options = self._options
        self._stack.callback(setattr, threading, "excepthook", threading.excepthook)
        threading.excepthook = self._on_bug
        if options.healthz_port:
            server = HealthServer(options.healthz_ip, options.healthz_port, lambda: self._ready)
            self._stack.enter_context(server)
        client = EtcdClient(options.etcd)
        self._stack.callback(client.close)
        threading.Thread(target=self._close_at_stop, args=(client,), name="closer", daemon=True).start()
        registry = Registry(client, options.etcd.prefix)
        log.info("waiting for etcd at %s", ", ".join(options.etcd.endpoints))
        config = persist(lambda: read_config(registry), "reading the network config", self._stop)
        log.info("network %s, backend %s", config.network, config.backend_type)
        self._lock(config)
        keeper = LeaseKeeper(registry, self._on_lost, ttl=options.lease_ttl, margin=int(options.renew_margin))
        uplink, public_ip = choose_uplink(options, config)
        node = persist(
            lambda: take_lease(keeper, registry, options, config, uplink, public_ip),
            "taking a lease",
            self._stop,
        )
        keeper.start()
        self._stack.callback(keeper.stop)
        self._keep(node, keeper, registry, client)
        if self._fatal:
            raise self._fatal

    def _lock(self, config: NetworkConfig) -> None:
        """Make sure that nobody else on this host serves this network or uses its device."""
        enter = self._stack.enter_context
        enter(network_lock(self._options.state_dir, config.network))
        enter(claim(f"network {config.network}", "stop that one, or give this one another --etcd-prefix"))
        overlay = backend_of(config).overlay_name(config)
        if overlay:
            enter(claim(f"device {overlay}", "each vxlan network of a host needs a Backend.VNI of its own"))

    def _keep(self, node: Node, keeper: LeaseKeeper, registry: Registry, client: EtcdClient) -> None:
        """Reconcile on every event, after every failure, and as often as it is cheap."""
        options, stack = self._options, self._stack
        kernel = stack.enter_context(KernelNetwork())
        tool: Tool = "nftables" if node.config.enable_nftables else "iptables"
        firewall = Firewall(options, tool, self._wake.set)
        reconciler = self._reconciler(node, kernel, firewall)
        relay = RelaySide(options, self._wake.set)
        report = Report(options.state_dir, options.datapath)
        self._serve_metrics(node.config)
        cluster = Cluster(registry, keeper, options.wipe_grace, reconciler.programmed(node), self._wake.set)
        stack.callback(cluster.stop)
        cluster.start()
        watch = Watch(client, registry.watched, cluster.wake)
        stack.callback(watch.stop)
        watch.start()
        overlay = backend_of(node.config).overlay_name(node.config)
        stack.enter_context(KernelMonitor(self._wake.set, overlay, kernel.ports, kernel.echoes))
        stack.enter_context(RulesMonitor(firewall.changed))
        while not self._stop.is_set():
            delay = firewall.lifetime
            view = cluster.view
            if view.leases:
                begun = time.thread_time()
                self._problems = set()
                node = self._follow_uplink(node, keeper, kernel)
                outcome = self._pass(node, view, reconciler, relay)
                cost = time.thread_time() - begun
                delay = self._settle(node, outcome) or min(max(cost / SHARE, SHORTEST), delay)
                delay = min(delay, outcome.again or delay)
                self._announce(node, outcome, keeper)
                self._last = outcome
                report.write(node, keeper.lease, view, outcome)
            self._wake.wait(delay)
            self._wake.clear()

    def _reconciler(self, node: Node, kernel: KernelNetwork, firewall: Firewall) -> Reconciler:
        options = self._options
        bpf, caps, why_not = open_datapath(options, node.config)
        if bpf:
            self._stack.enter_context(bpf)
        return Reconciler(
            kernel,
            firewall,
            bpf,
            datapath_settings(options, caps),
            options.bpf_pin_root,
            lambda old: remember_sysctl(options.state_dir, node.config.network, old.path, old.value),
            why_not,
            required=options.datapath == "ebpf",
            pod_grace=options.pod_grace,
            blackhole=options.ip_blackhole_route,
        )

    def _serve_metrics(self, config: NetworkConfig) -> None:
        """Answer /metrics on the address that was asked for, if any."""
        address, _, port = self._options.metrics_listen.rpartition(":")
        if not port:
            return
        from flannel_ebpf.metrics import NodeCollector, registry  # noqa: PLC0415 - costs memory, rarely asked for

        collector = NodeCollector(config.network, self._options.bpf_pin_root, lambda: self._last)
        server = HealthServer(
            address, int(port), lambda: self._ready, registry(collector), source="--metrics-listen"
        )
        self._stack.enter_context(server)

    def _pass(self, node: Node, view: View, reconciler: Reconciler, relay: RelaySide) -> Outcome:
        try:
            subnet_env.update(self._options.subnet_file, _environment(node, self._options))
        except ConfigError as error:
            self._problems.add(str(error))  # flanneld, too, goes on without its file
        try:
            relay.run(node, view.leases, accelerated=reconciler.accelerates)
            return reconciler.run(node, view.leases, may_delete=view.may_remove)
        except KernelError as error:
            return Outcome(errors=[error])

    def _follow_uplink(self, node: Node, keeper: LeaseKeeper, kernel: KernelNetwork) -> Node:
        """Return the node with its uplink as it is now; a new address is published under the same subnet.

        An uplink that the options no longer find, because it was renamed, is followed by its index.
        """
        try:
            uplink, public_ip = choose_uplink(self._options, node.config)
        except ConfigError as error:
            renamed = kernel.links.uplink_by_index(node.uplink.ifindex, node.uplink.ip)
            self._problems.add(f"uplink {(renamed or node.uplink).name} is kept: {error}")
            return replace(node, uplink=renamed or node.uplink)
        if public_ip != node.public_ip:
            log.warning("public IP changes from %s to %s", node.public_ip, public_ip)
            keeper.update(public_ip, lease_data(node.config, node.vtep_mac)[1])
            self._announced = None
        return replace(node, uplink=uplink, public_ip=public_ip)

    def _announce(self, node: Node, outcome: Outcome, keeper: LeaseKeeper) -> None:
        """Say in the lease what programs stand here, as soon as they do: udp peers must know."""
        if outcome.errors or not isinstance(node.config.backend, UdpConfig):
            return
        data = udp.BPF_DATA if outcome.accelerated else None
        if data != self._announced:
            keeper.update(node.public_ip, data)
            self._announced = data

    def _settle(self, node: Node, outcome: Outcome) -> float:
        """Log what a pass did; return the seconds until it must be tried again, 0 when all is right."""
        if outcome.writes:
            log.info(
                "%d changes made: %d peers, %d pods, %s",
                outcome.writes,
                len(outcome.peers),
                outcome.pods,
                "BPF" if outcome.accelerated else "kernel path",
            )
        problems = self._problems | {_worded(error, node.config) for error in outcome.errors}
        problems |= {f"lease {one.key} is skipped: {one.why}" for one in outcome.skipped}
        if outcome.why_not:
            problems.add(f"no BPF on this host, packets take the kernel path: {outcome.why_not}")
        self._say(problems)
        if outcome.errors:
            delay, self._retry = self._retry, min(self._retry * 2, LONGEST_RETRY)
            return delay
        self._retry = FIRST_RETRY
        if not self._ready:
            self._ready = True
            notify.ready()
            log.info("ready: subnet %s, MTU in %s", node.subnet, self._options.subnet_file)
        return 0.0

    def _say(self, problems: set[str]) -> None:
        """Log each problem when it appears, not on every pass."""
        for problem in sorted(problems - self._said):
            log.warning("%s", problem)
        self._said = frozenset(problems)

    def _close_at_stop(self, client: EtcdClient) -> None:
        """End requests that hang in etcd as soon as the daemon is told to stop: all threads wait for them."""
        self._stop.wait()
        client.close()

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
        self._wake.set()


def _worded(error: KernelError, config: NetworkConfig) -> str:
    return f"{error}; {udp.advice(config)}" if isinstance(error, DeviceUnsupported) else str(error)


def _environment(node: Node, options: Options) -> subnet_env.SubnetEnv:
    mtu = backend_of(node.config).mtu(node.config, node.uplink)
    return subnet_env.SubnetEnv(node.config.network, node.subnet, mtu, options.ip_masq)
