"""`flannel-ebpf down`: take back what the daemon made, as much as is asked for.

Works on a node in any state and again on its own result: each kind of thing is looked for in the kernel, and
taken away if it is there. Which networks there are is said by the daemon's reports, by pins and by routes of
ours, any of which may be missing.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

from flannel_ebpf.base.errors import (
    AlreadyRunning,
    ConfigError,
    EtcdError,
    FlannelError,
    KernelError,
    LeaseConflict,
)
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import Claim, Endpoint, Lease
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.teardown import Teardown, own_subnet
from flannel_ebpf.commands.told import source_of
from flannel_ebpf.commands.which import Asked, chosen
from flannel_ebpf.desired.backends import udp
from flannel_ebpf.host import report
from flannel_ebpf.host.lock import claimant, lock_path, network_lock, serving
from flannel_ebpf.kernel.netlink.links import read_addresses
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.leases.etcd import EtcdClient, Registry

log = logging.getLogger(__name__)

STOP_SECONDS = 15.0
"""How long a running daemon may take to stop; etcd may be hanging under it."""


def down(options: Options, asked: Asked, *, purge: bool, release: bool, force: bool) -> int:
    """Detach the programs of the networks that are asked for; with `purge` remove all that was ever made.

    A running daemon is stopped first, because it would put everything back. `release` also frees the lease.
    What flanneld has taken over since is not purged unless `force` says so. Each network is done whatever
    happens to the others. Raises FlannelError naming what could not be done.
    """
    networks = chosen(options, asked)
    if not networks:
        places = f"{options.state_dir}, {options.bpf_pin_root} or {options.subnet_file}"
        log.info("nothing to do: no network of ours in %s", places)
    failures: list[FlannelError] = []
    for network, told in networks.items():
        try:
            _take_down(options, network, told, purge=purge, release=release, force=force)
        except FlannelError as error:
            failures.append(error)
    if failures[1:]:
        raise KernelError("; ".join(map(str, failures)))
    if failures:
        raise failures[0]
    if purge:
        with suppress(OSError):  # other things may be in it, or it may be gone
            options.state_dir.rmdir()
    return 0


def _take_down(
    options: Options,
    network: Network,
    told: report.Content | None,
    *,
    purge: bool,
    release: bool,
    force: bool,
) -> None:
    if purge and not force:
        Teardown(options, network, told).check_ours()
    with _daemon_stopped(options.state_dir, network):
        teardown = Teardown(options, network, told)
        if told and told["etcd_prefix"]:
            options = replace(options, etcd=replace(options.etcd, prefix=told["etcd_prefix"]))
        if options.kube.kube_subnet_mgr or (told and told["kube"]["node"]):
            if release:
                _forget_node(options, told)
        elif release:
            _release(options, network, told)
        elif told and told["backend"] == "udp":
            _withdraw(options, network, told)
        if purge:
            teardown.purge()
        else:
            teardown.detach()


@contextmanager
def _daemon_stopped(state_dir: Path, network: Network) -> Iterator[None]:
    """Hold the network's lock, after asking the daemon that serves it to stop.

    The daemon is known by its claim, which it holds whatever became of its files; one of an older version by
    the lock. Another `down` is waited for.
    """
    deadline = time.monotonic() + STOP_SECONDS
    asked: set[int] = set()
    with ExitStack() as held:
        locked = False
        while True:
            try:
                locked = locked or _lock(held, state_dir, network)
            except AlreadyRunning:
                if time.monotonic() > deadline:
                    raise
            daemon = claimant(f"network {network}")
            if not daemon and not locked:
                daemon = serving(lock_path(state_dir, network))
            if locked and not daemon:
                break
            if daemon and time.monotonic() > deadline:
                raise AlreadyRunning(f"the daemon of {network}, process {daemon}, does not stop")
            if daemon and daemon not in asked:
                log.info("stopping the daemon of %s, process %d", network, daemon)
                with suppress(ProcessLookupError):
                    os.kill(daemon, signal.SIGTERM)
                asked.add(daemon)
            time.sleep(0.05)
        yield


def _lock(held: ExitStack, state_dir: Path, network: Network) -> bool:
    """Take the lock into `held`; where no lock file can be made, go on without. Raises AlreadyRunning."""
    try:
        held.enter_context(network_lock(state_dir, network, "down"))
    except ConfigError as error:
        log.warning("%s; going on without a lock", error)
    return True


def _forget_node(options: Options, told: report.Content | None) -> None:
    """Take our annotations off this node's object; its podCIDR is Kubernetes' own."""
    from flannel_ebpf.leases.kube.source import KubeSource  # noqa: PLC0415 - only where Kubernetes is

    with closing(source_of(options, told)) as source:
        if isinstance(source, KubeSource):
            source.release()
            log.info("node object: annotations are gone, and other nodes forget this one")


def _release(options: Options, network: Network, told: report.Content | None) -> None:
    """Free this node's lease; a reservation stays, and so does a lease that is another node's."""
    with closing(EtcdClient(options.etcd)) as client:
        registry = Registry(client, options.etcd.prefix)
        lease = _own_lease(registry, options, network, told)
        if lease is None:
            log.info("%s: no lease of this node to free", network)
        elif lease.etcd_lease:
            registry.delete(lease)
            log.info("lease %s is free", lease.key)
        else:
            log.info("%s is a reservation and stays", lease.key)


def _withdraw(options: Options, network: Network, told: report.Content | None) -> None:
    """Tell udp peers that no programs stand here any more: a relay cannot take all that programs can."""
    try:
        with closing(EtcdClient(options.etcd)) as client:
            registry = Registry(client, options.etcd.prefix)
            lease = _own_lease(registry, options, network, told)
            if lease and lease.claim.endpoints[0].backend_data == udp.BPF_DATA:
                ttl = options.lease_ttl if lease.etcd_lease else 0
                registry.rewrite(lease.with_claim(Claim("", (Endpoint(lease.public_ip),))), ttl)
    except (EtcdError, LeaseConflict) as error:
        log.warning("peers still take this node for one with programs, until its lease is written: %s", error)


def _own_lease(
    registry: Registry, options: Options, network: Network, told: report.Content | None
) -> Lease | None:
    subnet = own_subnet(options, network, told)
    with RouteSocket() as netlink:
        own: set[Address] = {
            address.interface.ip for family in Family for address in read_addresses(netlink, family)
        }
    own |= {ip_address(told["public_ip"])} if told else set()
    ours = (one for one in registry.snapshot().leases if subnet in one.subnets and one.public_ip in own)
    return next(ours, None)
