"""What is removed of one network: its programs, or all that was ever made."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from flannel_ebpf.agent.relay_side import folder as relay_folder
from flannel_ebpf.base.errors import AlreadyRunning, FlannelError, KernelError
from flannel_ebpf.base.family import Network, family_of
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands import flanneld
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
from flannel_ebpf.host import remembered, report, subnet_env
from flannel_ebpf.host.lock import lock_path
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.firewall.rules import Rules
from flannel_ebpf.kernel.hooks.ownership import name_in
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.pods import pod_ports
from flannel_ebpf.kernel.programs.pins import Pins, networks
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.relay.supervise import remove as remove_relay

log = logging.getLogger(__name__)

RTPROT_BOOT = 3
"""The protocol number of flanneld's own routes (linux/rtnetlink.h)."""


class Teardown:
    """Takes back one network's part of this host. `told` is the daemon's report, None when there is none."""

    def __init__(self, options: Options, network: Network, told: report.Content | None) -> None:
        self._options = options
        self._network = network
        self._told = told
        self._before = remembered.read(options.state_dir, network)
        self._pins = Pins.of(network, options.bpf_pin_root)
        self._failures: list[str] = []

    def check_ours(self) -> None:
        """Raise AlreadyRunning when the network is flanneld's by now."""
        with KernelNetwork() as kernel:
            seen = kernel.look()
            found = kernel.read(seen, self._scope(seen))
        signs = flanneld.signs(self._options, self._network, self._told, found, self._before.routes)
        why = next(signs, "")
        if why:
            raise AlreadyRunning(
                f"{self._network} may be flanneld's now: {why}. Nothing was removed: "
                "stop flanneld first, or say --force"
            )

    def detach(self) -> None:
        """Remove programs, relay and what goes with them; the kernel path stays, as flanneld's own.

        Raises KernelError naming everything that could not be removed.
        """
        with KernelNetwork() as kernel:
            seen = kernel.look()
            scope = self._scope(seen)
            found = kernel.read(seen, scope)
            gone: list[Object] = [*self._programs(kernel, seen, scope)]
            gone += [one for one in found if isinstance(one, Route) and one.blackhole]
            self._apply(kernel, scope, [*plan([], gone), *self._hand_over(found)])
        self._pins.remove_all()
        self._end_relay(scope)
        self._give_back()
        log.info("%s: %d objects removed from the kernel, no program attached", self._network, len(gone))
        if self._told:
            with self._noting_failures():
                self._mark_handed_over(self._told)
        self._tell_failures()

    def purge(self) -> None:
        """Remove it all; raises KernelError naming everything that could not be removed."""
        with KernelNetwork() as kernel:
            seen = kernel.look()
            scope = self._scope(seen)
            found = kernel.read(seen, scope, wanted=frozenset(self._before.routes))
            programs = self._programs(kernel, seen, scope)
            gone = [*found, *programs, *Rules().read(self._network)]
            self._apply(kernel, scope, plan([], gone))
            self._drop_clsacts(kernel, scope, programs)
        self._pins.remove_all()
        self._end_relay(scope)
        self._give_back()
        log.info("%s: %d objects removed from the kernel, no program attached", self._network, len(gone))
        self._remove_files()
        self._tell_failures()

    def _programs(self, kernel: KernelNetwork, seen: Seen, scope: Scope) -> set[Object]:
        return kernel.hooks.read(seen, scope, partial(name_in, self._network))

    def _scope(self, seen: Seen) -> Scope:
        told = self._told or {}
        uplink = seen.index_of(told.get("uplink", ""))
        subnet = own_subnet(self._options, self._network, self._told)
        return Scope(self._network, subnet, told.get("overlay") or self._overlay(seen), uplink)

    def _overlay(self, seen: Seen) -> str:
        """Return the device named like ours that has an address in the network, "" when there is none."""
        for address in seen.addresses(family_of(self._network)):
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
        """Return what turns our routes into flanneld's own, and remember that they were ours.

        Where that cannot be remembered, on a full disk, they stay ours: flanneld does not look at it.
        """
        ours = [
            one
            for one in found
            if isinstance(one, Route) and one.protocol == ROUTE_PROTOCOL and not one.blackhole
        ]
        with self._noting_failures():
            remembered.remember_routes(self._options.state_dir, self._network, [route.dst for route in ours])
            return [Put(replace(route, protocol=RTPROT_BOOT), route) for route in ours]
        return []

    def _drop_clsacts(self, kernel: KernelNetwork, scope: Scope, programs: Iterable[Object]) -> None:
        """Remove the qdiscs that our filters stood on, when nothing else stands there."""
        devices = {one.ifindex for one in programs if isinstance(one, Filter)} | {scope.uplink}
        seen = kernel.look()
        devices |= {port.ifindex for port in pod_ports(seen, [scope.subnet])}
        for ifindex in devices - {0}:
            with suppress(KernelError):  # a device that is gone took its qdisc along
                kernel.hooks.drop_idle_clsact(seen, ifindex)

    def _end_relay(self, scope: Scope) -> None:
        """End the udp backend's relay with its device: flanneld needs its port, and brings both along."""
        if scope.overlay != udp.TUN_NAME:
            return
        with self._noting_failures():
            if remove_relay(relay_folder(self._options.state_dir), udp.TUN_NAME):
                log.info(
                    "%s: the relay has ended; pods reach each other when a daemon runs again", self._network
                )

    def _give_back(self) -> None:
        """Set changed values to what they were, unless another network's programs need them still."""
        state_dir = self._options.state_dir
        others = networks(self._options.bpf_pin_root) - {self._network}
        for path, value in self._before.sysctls.items():
            with self._noting_failures():
                if others:
                    remembered.remember_sysctl(state_dir, min(others), path, value)
                elif sysctl.read(path) not in (None, value):
                    sysctl.write(path, value)
        with self._noting_failures():
            remembered.forget_sysctls(state_dir, self._network)

    def _mark_handed_over(self, told: report.Content) -> None:
        datapath = {**told["datapath"], "accelerated": False, "attach": ""}
        try:
            report.write(self._options.state_dir, {**told, "datapath": datapath, "handed_over": True})
        except OSError as error:
            raise KernelError(f"the report cannot be written: {error}") from error

    def _remove_files(self) -> None:
        options, network = self._options, self._network
        files = [
            path_of(options.state_dir, network) for path_of in (report.path_of, remembered.path_of, lock_path)
        ]
        if subnet_env.read(options.subnet_file).networks[:1] == (network,):
            files.append(options.subnet_file)
        for path in files:
            with self._noting_failures():
                _unlink(path)

    @contextmanager
    def _noting_failures(self) -> Iterator[None]:
        try:
            yield
        except FlannelError as error:
            self._failures.append(str(error))

    def _tell_failures(self) -> None:
        if self._failures:
            raise KernelError("; ".join(self._failures))


def own_subnet(options: Options, network: Network, told: report.Content | None) -> Network:
    """Return this node's subnet as far as anything tells it, the network's first address otherwise."""
    if told:
        return ip_network(told["subnet"])
    written = subnet_env.read(options.subnet_file)
    if written.subnets and written.networks[:1] == (network,):
        return written.subnets[0]
    return ip_network((network.network_address, network.max_prefixlen))


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(f"{path} cannot be removed: {error.strerror}", error.errno or 0) from error
