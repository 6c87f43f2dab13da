"""The BPF side in a pass: which programs are loaded, and what maps and hooks should hold."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.base.model import PodPort
from flannel_ebpf.contract import abi
from flannel_ebpf.contract.abi import Fastpath
from flannel_ebpf.desired.backends import Node, Peer, backend_of, udp
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.bpf.optional import Extras
from flannel_ebpf.desired.bpf.pod_grace import Newcomers
from flannel_ebpf.desired.objects import MapEntry, Object, Sysctl
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.netlink import ethtool
from flannel_ebpf.kernel.netlink.links import find_link
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.pods import Links
from flannel_ebpf.kernel.programs.in_use import Datapath
from flannel_ebpf.kernel.programs.loader import Loaded
from flannel_ebpf.kernel.programs.pins import Pins

BE_LIBERAL = "net/netfilter/nf_conntrack_tcp_be_liberal"
"""Conntrack sees only part of an accelerated stream, and would call what it sees next invalid."""


class Acceleration:
    """Says what this node's BPF side should be, beside the kernel path; a pass carries it out.

    `bpf` is None when the kernel path alone is used; `why_not` then says why, if it was not asked for.
    With `required`, a host that cannot run the programs is an error; otherwise a pass goes on without
    them. `pod_grace`: seconds that programs keep away from a pod's new veth.
    """

    def __init__(
        self,
        bpf: Datapath | None,
        settings: contents.Settings,
        netlink: RouteSocket,
        pin_root: Path,
        why_not: str = "",
        *,
        required: bool,
        pod_grace: float = 0.0,
    ) -> None:
        self.bpf = bpf
        self.attach = settings.attach
        self.newcomers = Newcomers(pod_grace)
        self.extras = Extras(settings)
        self._settings = settings
        self._netlink = netlink
        self._links = Links(netlink)
        self._pin_root = pin_root
        self._why_not = why_not
        self._required = required

    def load(self, node: Node, peers: Sequence[Peer]) -> tuple[Loaded | None, str]:
        """Have the programs for this node and these peers loaded, or say why there are none.

        Raises BpfError when they are `required` and cannot run, KernelError.
        """
        if self.bpf is None:
            return None, self._why_not
        try:
            return self.bpf.load(self._constants(node, peers)), ""
        except BpfError as error:
            if self._required:
                raise
            return None, str(error)

    def _constants(self, node: Node, peers: Sequence[Peer]) -> abi.Config:
        config = contents.constants(node, peers, self._settings)
        if config.backend != abi.Mode.UDP:
            return config
        tun = find_link(self._netlink, udp.TUN_NAME)
        finishes = ethtool.finishes(node.uplink.name)
        return replace(config, tun=tun.index if tun else 0, uplink_finishes=finishes)

    def wanted(
        self,
        node: Node,
        peers: Sequence[Peer],
        slots: contents.Slots,
        ports: Sequence[PodPort],
        programs: Mapping[str, int],
        entries: Sequence[MapEntry],
    ) -> list[Object]:
        """Return the objects of the BPF side: map entries, hooks, and what goes with them.

        `programs` are the ids of the loaded programs by name, `entries` what the maps hold: some of it is
        learned by the programs and stays. Raises KernelError.
        """
        name = backend_of(node.config).overlay_name(node.config)
        overlay = find_link(self._netlink, name) if name else None
        old = self.newcomers.settled(ports, time.monotonic())
        wanted: list[Object] = [
            *contents.peer_entries(peers, slots),
            *contents.port_entries(ports),
            *contents.pod_entries(entries, ports, self._links.pod_macs(ports)),
            *contents.filters(
                old, node.uplink.ifindex, overlay.index if overlay else 0, peers, programs, self.attach
            ),
            *self.extras.wanted(node, ports, programs),
        ]
        if self._settings.fastpath == Fastpath.FLOWS and sysctl.read(BE_LIBERAL) is not None:
            wanted.append(Sysctl(BE_LIBERAL, "1"))
        return wanted

    def sweep(self, network: IPv4Network, loaded: Loaded | None) -> None:
        """Unpin what is not in use, now that nothing is attached from it any more."""
        if self.bpf is None:
            Pins.of(network, self._pin_root).remove_all()
        elif loaded:
            self.bpf.sweep()
