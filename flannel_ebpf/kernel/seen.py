"""The kernel's tables as they were when a pass first asked for them: each is read once and handed down."""

from __future__ import annotations

import errno
from collections.abc import Collection, Mapping
from functools import cached_property

from flannel_ebpf.base.errors import BpfError, BpfUnavailable, KernelError
from flannel_ebpf.base.family import Family, Network
from flannel_ebpf.desired.objects import Direction
from flannel_ebpf.kernel.bpf import attached_by_tcx
from flannel_ebpf.kernel.netlink.links import Address, Link, read_addresses, read_links
from flannel_ebpf.kernel.netlink.policy import PolicyRule, read_rules
from flannel_ebpf.kernel.netlink.qdiscs import HookFilter, Qdisc, read_hook, read_qdiscs
from flannel_ebpf.kernel.netlink.recognised import Recognised
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.netlink.routes import KernelRoute, read_main_table

_GONE = {errno.ENOENT, errno.ENODEV}


class Seen:
    """What stands in one network namespace; every question raises KernelError when the kernel refuses.

    A device that a pass makes or changes takes its addresses and routes along: what was seen before that no
    longer counts, and the pass looks anew. `netlink` answers questions that no table holds; `known` and
    `within` are as of read_main_table.
    """

    def __init__(
        self,
        netlink: RouteSocket,
        known: Mapping[Family, Recognised[KernelRoute]] | None = None,
        within: Collection[Network] = (),
    ) -> None:
        self.netlink = netlink
        self.within = within
        self._known = known or {}
        self._addresses: dict[Family, list[Address]] = {}
        self._routes: dict[Family, list[KernelRoute]] = {}
        self._rules: dict[Family, list[PolicyRule]] = {}
        self._filters: dict[tuple[int, Direction], list[HookFilter]] = {}
        self._programs: dict[tuple[int, Direction], tuple[int, ...]] = {}
        self._no_tcx = False

    @cached_property
    def links(self) -> dict[int, Link]:
        """Every device by ifindex."""
        return read_links(self.netlink)

    @cached_property
    def named(self) -> dict[str, Link]:
        """Every device by name."""
        return {link.name: link for link in self.links.values()}

    def addresses(self, family: Family) -> list[Address]:
        """Return every address of one family, in the kernel's order."""
        if family not in self._addresses:
            self._addresses[family] = read_addresses(self.netlink, family)
        return self._addresses[family]

    def routes(self, family: Family) -> list[KernelRoute]:
        """Return the main table's routes of one family, in the order of lookup: see read_main_table."""
        if family not in self._routes:
            self._routes[family] = read_main_table(self.netlink, family, self._known.get(family), self.within)
        return self._routes[family]

    def rules(self, family: Family) -> list[PolicyRule]:
        """Return the rules of policy routing that our packets of one family may meet, but the usual three."""
        if family not in self._rules:
            self._rules[family] = list(read_rules(self.netlink, family))
        return self._rules[family]

    @cached_property
    def qdiscs(self) -> list[Qdisc]:
        """Every device's qdiscs."""
        return list(read_qdiscs(self.netlink))

    def index_of(self, name: str) -> int:
        """Return the ifindex of a device, 0 when it is not there."""
        link = self.named.get(name)
        return link.index if link else 0

    def filters(self, ifindex: int, direction: Direction) -> list[HookFilter]:
        """Return the filters on a clsact hook; none where the device or its clsact is gone."""
        place = ifindex, direction
        if place not in self._filters:
            self._filters[place] = read_hook(self.netlink, ifindex, direction)
        return self._filters[place]

    def programs(self, ifindex: int, direction: Direction) -> tuple[int, ...]:
        """Return the ids of the programs on a tcx hook, in the order in which they run.

        None where the device is gone, in a kernel without tcx, and where BPF is not for us.
        """
        place = ifindex, direction
        if place not in self._programs:
            self._programs[place] = () if self._no_tcx else self._ask_tcx(ifindex, direction)
        return self._programs[place]

    def _ask_tcx(self, ifindex: int, direction: Direction) -> tuple[int, ...]:
        try:
            return attached_by_tcx(ifindex, direction)
        except BpfError as error:
            if error.code in _GONE:
                return ()
            if error.code == errno.EINVAL or isinstance(error, BpfUnavailable):
                self._no_tcx = True
                return ()
            raise KernelError(str(error), error.code) from error
