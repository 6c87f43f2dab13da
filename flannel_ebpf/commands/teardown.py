"""What is removed of one network: its programs, or all that was ever made."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from ipaddress import ip_network
from pathlib import Path

from flannel_ebpf.agent.relay_side import folder as relay_folder
from flannel_ebpf.base.errors import AlreadyRunning, FlannelError, KernelError
from flannel_ebpf.base.family import Address, Network, family_of, in_order
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands import flanneld
from flannel_ebpf.desired import demand
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
from flannel_ebpf.kernel.programs import readout
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
            found = self._read(kernel, kernel.look())
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
            scope = self._scopes(seen)[0]
            found = self._read(kernel, seen)
            shared = {one for one in found if demand.leads_in(one)}
            if shared:  # peers on demand: without programs each needs objects of its own
                known = demand.for_all(scope.overlay, readout.every_peer(self._network, self._pins.root))
                self._apply(kernel, scope, plan(known, found, may_delete=False))
                found = (found - shared) | set(known)
            programs = self._take_off(kernel, seen)
            rest = [*shared, *(one for one in found if isinstance(one, Route) and one.blackhole)]
            gone: list[Object] = [*programs, *rest]
            self._apply(kernel, scope, [*plan([], rest), *self._hand_over(found)])
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
            scope, *others = self._scopes(seen)
            found = self._read(kernel, seen, dict.fromkeys(self._before.routes))
            programs = self._take_off(kernel, seen)
            rules = [rule for one in (scope, *others) for rule in Rules().read(one.network)]
            gone = [*found, *programs, *rules]
            self._apply(kernel, scope, plan([], [*found, *rules]))
            self._drop_clsacts(kernel, [scope, *others], programs)
        self._end_relay(scope)
        self._give_back()
        log.info("%s: %d objects removed from the kernel, no program attached", self._network, len(gone))
        self._remove_files()
        self._tell_failures()

    def _take_off(self, kernel: KernelNetwork, seen: Seen) -> list[Object]:
        """Remove every family's programs and their pins; return what stood on hooks."""
        scopes = self._scopes(seen)
        places = [self._pins, *(Pins.of(scope.network, self._pins.folder) for scope in scopes[1:])]
        gone: list[Object] = []
        for scope, pins in zip(scopes, places, strict=True):
            mine = kernel.hooks.read(seen, scope, partial(name_in, scope.network, pinned=pins.programs))
            self._apply(kernel, scope, plan([], mine))
            gone += mine
        for pins in reversed(places):  # the other family's lie below the first's
            pins.remove_all()
        return gone

    def _read(
        self, kernel: KernelNetwork, seen: Seen, wanted: Mapping[Network, Address | None] | None = None
    ) -> set[Object]:
        """Return what the kernel path is made of, in every family that anything tells of."""
        return {obj for scope in self._scopes(seen) for obj in kernel.read(seen, scope, wanted=wanted)}

    def _scopes(self, seen: Seen) -> list[Scope]:
        """Return the scope of each family, that by which the network is known first."""
        uplink = seen.index_of(self._told["uplink"] if self._told else "")
        if self._told:
            return [
                Scope(ip_network(one["network"]), ip_network(one["subnet"]), one["overlay"], uplink)
                for one in report.families(self._told)
            ]
        written = subnet_env.read(self._options.subnet_file)
        pairs = [*zip(written.networks, written.subnets, strict=False)]
        if not pairs or pairs[0][0] != self._network:
            pairs = [
                (self._network, ip_network((self._network.network_address, self._network.max_prefixlen)))
            ]
        return [Scope(network, subnet, _overlay(seen, network), uplink) for network, subnet in pairs]

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

    def _drop_clsacts(
        self, kernel: KernelNetwork, scopes: Sequence[Scope], programs: Iterable[Object]
    ) -> None:
        """Remove the qdiscs that our filters stood on, when nothing else stands there."""
        devices = {one.ifindex for one in programs if isinstance(one, Filter)} | {scopes[0].uplink}
        seen = kernel.look()
        devices |= {port.ifindex for port in pod_ports(seen, [scope.subnet for scope in scopes])}
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
                    remembered.remember_sysctl(state_dir, min(others, key=in_order), path, value)
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


def _overlay(seen: Seen, network: Network) -> str:
    """Return the device named like ours that has an address in the network, "" when there is none."""
    for address in seen.addresses(family_of(network)):
        link = seen.links.get(address.ifindex)
        single = address.interface.network.prefixlen == network.max_prefixlen
        named_so = link and (link.name == udp.TUN_NAME or link.name.startswith(("flannel.", "flannel-v6.")))
        if link and named_so and single and address.interface.ip in network:
            return link.name
    return ""


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise KernelError(f"{path} cannot be removed: {error.strerror}", error.errno or 0) from error
