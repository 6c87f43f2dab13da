"""`flannel-ebpf down`: take back what the daemon made, as much as is asked for.

Works on a node in any state and again on its own result: each kind of thing is looked for in the kernel, and
taken away if it is there.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flannel_ebpf import report, subnet_env
from flannel_ebpf.errors import AlreadyRunning, KernelError
from flannel_ebpf.etcd import EtcdClient, Registry
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.links import read_addresses, read_links
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.pins import Pins, networks
from flannel_ebpf.kernel.rules import Rules
from flannel_ebpf.lock import holder, network_lock
from flannel_ebpf.objects import Filter, Object, Scope, XdpProgram
from flannel_ebpf.options import Options
from flannel_ebpf.plan import plan
from flannel_ebpf.relay.supervise import remove as remove_relay

log = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""How long a running daemon may take to stop; etcd may be hanging under it."""


def down(options: Options, *, purge: bool, release: bool) -> int:
    """Detach the programs of every network known here; with `purge` remove all that was ever made.

    A running daemon is stopped first, because it would put everything back. `release` also frees the lease.
    Raises AlreadyRunning when the daemon does not stop, KernelError naming what could not be removed, and
    EtcdError for a lease that could not be freed.
    """
    reports = {IPv4Network(one["network"]): one for one in report.read_all(options.state_dir)}
    known = set(reports) | networks(options.bpf_pin_root)
    written = subnet_env.read(options.subnet_file).network
    if written:
        known.add(written)
    if not known:
        log.info("nothing to do: no network in %s or %s", options.state_dir, options.bpf_pin_root)
    for network in sorted(known):
        with _daemon_stopped(options.state_dir, network):
            if release:
                _release(options, reports.get(network, {}))
            _take_down(options, network, reports.get(network, {}), purge=purge)
    return 0


@contextmanager
def _daemon_stopped(state_dir: Path, network: IPv4Network) -> Iterator[None]:
    """Hold the network's lock, after asking the daemon that holds it to stop."""
    deadline = time.monotonic() + STOP_SECONDS
    asked = 0
    while True:
        try:
            with network_lock(state_dir, network):
                yield
                return
        except AlreadyRunning:
            pid = holder(state_dir, network)
            if time.monotonic() > deadline:
                raise
            if pid and pid != asked:
                log.info("stopping the daemon of %s, process %d", network, pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                asked = pid
            time.sleep(0.05)


def _take_down(options: Options, network: IPv4Network, known: dict[str, Any], *, purge: bool) -> None:
    failures: list[str] = []
    with KernelNetwork() as kernel:
        scope = _scope(kernel, network, known)
        ours = [*kernel.read(scope, owns_xdp=_pinned(options, network)), *Rules().read(network)]
        programs = [one for one in ours if isinstance(one, Filter | XdpProgram)]
        gone: list[Object] = ours if purge else list(programs)
        rules = Rules()
        ops = plan([], gone)
        failures += [str(one.error) for one in rules.apply([op for op in ops if _is_rule(op.obj)])]
        failures += [str(one.error) for one in kernel.apply([op for op in ops if not _is_rule(op.obj)], scope)]
        if purge:
            for ifindex in {one.ifindex for one in programs}:
                kernel.drop_idle_clsact(ifindex)
    Pins.of(network, options.bpf_pin_root).remove_all()
    log.info("%s: %d objects removed from the kernel, no program attached", network, len(gone))
    if purge:
        _forget(options, network, known)
    if failures:
        raise KernelError("; ".join(failures))
