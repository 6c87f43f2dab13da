"""`flannel-ebpf down`: take back what the daemon made, as much as is asked for.

Works on a node in any state and again on its own result: each kind of thing is looked for in the kernel, and
taken away if it is there. Which networks there are is said by the daemon's reports, the pins and subnet.env,
any of which may be missing.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flannel_ebpf.agent import status_file
from flannel_ebpf.agent.relay_side import folder as relay_folder
from flannel_ebpf.base.errors import AlreadyRunning, EtcdError, FlannelError, KernelError, LeaseConflict
from flannel_ebpf.base.model import Lease
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import udp
from flannel_ebpf.desired.objects import (
    ROUTE_PROTOCOL,
    Filter,
    HeadroomPort,
    Object,
    Route,
    Ruleset,
    Scope,
    XdpProgram,
)
from flannel_ebpf.desired.plan import Op, Put, plan
from flannel_ebpf.host import remembered, subnet_env
from flannel_ebpf.host.lock import holder, lock_path, network_lock
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.firewall.rules import Rules
from flannel_ebpf.kernel.hooks.ownership import name_in
from flannel_ebpf.kernel.netlink.links import read_addresses
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.pods import pod_ports
from flannel_ebpf.kernel.programs.pins import Pins, networks
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.leases.etcd import EtcdClient, Registry
from flannel_ebpf.relay.supervise import remove as remove_relay

log = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""How long a running daemon may take to stop; etcd may be hanging under it."""

RTPROT_BOOT = 3
"""The protocol number of flanneld's own routes (linux/rtnetlink.h)."""


def down(options: Options, *, purge: bool, release: bool) -> int:
    """Detach the programs of every network known here; with `purge` remove all that was ever made.

    A running daemon is stopped first, because it would put everything back. `release` also frees the lease.
    Raises AlreadyRunning when the daemon does not stop, KernelError naming what could not be removed, and
    EtcdError for a lease that could not be freed.
    """
    known = _known(options)
    if not known:
        places = f"{options.state_dir}, {options.bpf_pin_root} or {options.subnet_file}"
        log.info("nothing to do: no network in %s", places)
    for network in sorted(known):
        with _daemon_stopped(options.state_dir, network):
            if release:
                _release(options, network)
            elif status_file.read(options.state_dir, network).get("backend") == "udp":
                _withdraw(options, network)
            _Teardown(options, network).run(purge=purge)
    if purge:
        with suppress(OSError):  # other things may be in it, or it may be gone
            options.state_dir.rmdir()
    return 0


def _known(options: Options) -> set[IPv4Network]:
    reported = {IPv4Network(one["network"]) for one in status_file.read_all(options.state_dir)}
    written = subnet_env.read(options.subnet_file).network
    return reported | networks(options.bpf_pin_root) | ({written} if written else set())


@contextmanager
def _daemon_stopped(state_dir: Path, network: IPv4Network) -> Iterator[None]:
    """Hold the network's lock, after asking the daemon that holds it to stop."""
    deadline = time.monotonic() + STOP_SECONDS
    asked = 0
    with ExitStack() as held:
        while True:
            try:
                held.enter_context(network_lock(state_dir, network))
                break
            except AlreadyRunning:
                if time.monotonic() > deadline:
                    raise
            pid = holder(lock_path(state_dir, network))
            if pid not in (0, asked):
                log.info("stopping the daemon of %s, process %d", network, pid)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
                asked = pid
            time.sleep(0.05)
        yield


def _release(options: Options, network: IPv4Network) -> None:
    """Free this node's lease; a reservation stays, and so does a lease that is another node's."""
    with closing(EtcdClient(options.etcd)) as client:
        registry = Registry(client, options.etcd.prefix)
        lease = _own_lease(registry, options, network)
        if lease is None:
            log.info("%s: no lease of this node to free", network)
        elif lease.etcd_lease:
            registry.delete(lease)
            log.info("lease %s is free", lease.key)
        else:
            log.info("%s is a reservation and stays", lease.key)


def _withdraw(options: Options, network: IPv4Network) -> None:
    """Tell udp peers that no programs stand here any more: a relay cannot take all that programs can."""
    try:
        with closing(EtcdClient(options.etcd)) as client:
            registry = Registry(client, options.etcd.prefix)
            lease = _own_lease(registry, options, network)
            if lease and lease.backend_data == udp.BPF_DATA:
                ttl = options.lease_ttl if lease.etcd_lease else 0
                registry.rewrite(replace(lease, backend_data=None), ttl)
    except (EtcdError, LeaseConflict) as error:
        log.warning("peers still take this node for one with programs, until its lease is written: %s", error)


def _own_lease(registry: Registry, options: Options, network: IPv4Network) -> Lease | None:
    subnet = _subnet(options, network)
    with RouteSocket() as netlink:
        own = {address.interface.ip for address in read_addresses(netlink)}
    told = status_file.read(options.state_dir, network).get("public_ip")
    own |= {IPv4Address(told)} if told else set()
    ours = (one for one in registry.snapshot().leases if one.subnet == subnet and one.public_ip in own)
    return next(ours, None)


def _subnet(options: Options, network: IPv4Network) -> IPv4Network:
    """Return this node's subnet as far as anything tells it, the network's first address otherwise."""
    told = status_file.read(options.state_dir, network).get("subnet")
    written = subnet_env.read(options.subnet_file)
    if told:
        return IPv4Network(told)
    if written.subnet and written.network == network:
        return written.subnet
    return IPv4Network((network.network_address, 32))


class _Teardown:
    """What is removed of one network."""

    def __init__(self, options: Options, network: IPv4Network) -> None:
        self._options = options
        self._network = network
        self._pins = Pins.of(network, options.bpf_pin_root)
        self._failures: list[str] = []

    def run(self, *, purge: bool) -> None:
        """Remove it; raises KernelError naming everything that could not be removed."""
        with KernelNetwork() as kernel:
            seen = kernel.look()
            scope = self._scope(seen)
            handed_over = frozenset(map(IPv4Network, self._before.routes))
            found = kernel.read(seen, scope, wanted=handed_over)
            programs = kernel.hooks.read(seen, scope, partial(name_in, self._network))
            if purge:
                gone = [*found, *programs, *Rules().read(self._network)]
                self._apply(kernel, scope, plan([], gone))
                self._drop_clsacts(kernel, scope, programs)
            else:
                gone = list[Object](programs)
                self._apply(kernel, scope, [*plan([], gone), *self._hand_over(found)])
        self._pins.remove_all()
        log.info("%s: %d objects removed from the kernel, no program attached", self._network, len(gone))
        if purge:
            self._forget(scope)
        if self._failures:
            raise KernelError("; ".join(self._failures))

    @property
    def _before(self) -> remembered.Before:
        return remembered.read(self._options.state_dir, self._network)

    def _scope(self, seen: Seen) -> Scope:
        known = status_file.read(self._options.state_dir, self._network)
        uplinks = [index for index, link in seen.links.items() if link.name == known.get("uplink")]
        subnet = _subnet(self._options, self._network)
        overlay = known.get("overlay") or self._overlay(seen)
        return Scope(self._network, subnet, overlay, uplinks[0] if uplinks else 0)

    def _overlay(self, seen: Seen) -> str:
        """Return the device named like ours that has an address in the network, "" when there is none."""
        for address in seen.addresses:
            link = seen.links.get(address.ifindex)
            inside = address.interface.ip in self._network and address.interface.network.prefixlen == 32
            if link and inside and (link.name == udp.TUN_NAME or link.name.startswith("flannel.")):
                return link.name
        return ""

    def _apply(self, kernel: KernelNetwork, scope: Scope, ops: list[Op]) -> None:
        hooked = [op for op in ops if isinstance(op.obj, Filter | XdpProgram | HeadroomPort)]
        rules = [op for op in ops if isinstance(op.obj, Ruleset)]
        rest = [op for op in ops if op not in hooked and op not in rules]
        failed = kernel.hooks.apply(hooked, scope, {}) + Rules().apply(rules) + kernel.apply(rest)
        self._failures += [str(one.error) for one in failed]

    def _hand_over(self, found: Iterable[Object]) -> list[Op]:
        """Return what turns our routes into flanneld's own, and remember that they were ours."""
        ours = [one for one in found if isinstance(one, Route) and one.protocol == ROUTE_PROTOCOL]
        remembered.remember_routes(self._options.state_dir, self._network, [route.dst for route in ours])
        return [Put(replace(route, protocol=RTPROT_BOOT), route) for route in ours]

    def _drop_clsacts(self, kernel: KernelNetwork, scope: Scope, programs: Iterable[Object]) -> None:
        """Remove the qdiscs that our filters stood on, when nothing else stands there."""
        devices = {one.ifindex for one in programs if isinstance(one, Filter)} | {scope.uplink}
        seen = kernel.look()
        devices |= {port.ifindex for port in pod_ports(seen, scope.subnet)}
        for ifindex in devices - {0}:
            with suppress(KernelError):  # a device that is gone took its qdisc along
                kernel.hooks.drop_idle_clsact(seen, ifindex)

    def _forget(self, scope: Scope) -> None:
        """Give back changed values and remove files; what cannot be given back is a failure."""
        options, network = self._options, self._network
        for path, value in self._before.sysctls.items():
            with self._noting_failures():
                if sysctl.read(path) not in (None, value):
                    sysctl.write(path, value)
        if scope.overlay == udp.TUN_NAME:
            with self._noting_failures():
                remove_relay(relay_folder(options.state_dir), udp.TUN_NAME)
        if subnet_env.read(options.subnet_file).network == network:
            options.subnet_file.unlink(missing_ok=True)
        for path_of in (status_file.path_of, remembered.path_of, lock_path):
            path_of(options.state_dir, network).unlink(missing_ok=True)

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except FlannelError as error:
            self._failures.append(str(error))
