"""A thread that hears of changes in the kernel and wakes the loop; what changed, the next pass reads."""

from __future__ import annotations

import errno
import os
import struct
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from types import TracebackType

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Family
from flannel_ebpf.kernel.interest import Interest
from flannel_ebpf.kernel.netlink.bulk import Notice, notice
from flannel_ebpf.kernel.netlink.links import find_link
from flannel_ebpf.kernel.netlink.listen import listen
from flannel_ebpf.kernel.netlink.route_socket import U32, RouteSocket, attributes, messages
from flannel_ebpf.kernel.netlink.routes import RTA_DST, RTA_TABLE, RTMSG
from flannel_ebpf.kernel.netlink.xfrm import policy_news

_RTMGRP_LINK, _RTMGRP_NEIGH, _RTMGRP_TC = 0x1, 0x4, 0x8
_GROUPS = _RTMGRP_LINK | _RTMGRP_NEIGH | _RTMGRP_TC
_GROUPS_OF = {Family.V4: 0x10 | 0x40 | 0x80, Family.V6: 0x100 | 0x400 | 1 << 18}
"""RTMGRP_IPV4_IFADDR, _ROUTE and _RULE; RTMGRP_IPV6_IFADDR, _ROUTE and the bit of RTNLGRP_IPV6_RULE."""

_RTM_NEWLINK, _RTM_DELLINK, _RTM_NEWROUTE, _RTM_DELROUTE = 16, 17, 24, 25
_NEIGHBOUR = {28, 29}  # RTM_NEWNEIGH, RTM_DELNEIGH
_ALWAYS = {16, 17, 20, 21, 32, 33, 36, 37, 44, 45}
"""RTM_NEW and RTM_DEL of LINK, ADDR, RULE, QDISC, TFILTER."""
_IFLA_IFNAME = 3
_IFINDEX = struct.Struct("=4xi")  # second word of ndmsg and ifinfomsg

_BUFFER = 256 << 10
"""Octets of messages held for us; a flood beyond is dropped by the kernel, which tells us just as well."""

_GATHER = 0.1
"""Seconds in which further changes join the first: a pod's arrival alone makes about twenty messages."""


class KernelMonitor:
    """Calls `on_change`, from its own thread, soon after links, addresses, routes, filters or peers changed.

    Addresses, routes and rules are heard of in the families of `overlays`, which names each one's overlay
    device, "" for none; IPsec's policies in all families. Left out are the neighbours and FDB entries of all
    other devices, routes of no `interest`, and changes made by the sockets in `own_ports` or announced in
    `echoes` (see KernelNetwork): without that, each pass that writes would cause another. Messages lost in a
    flood count as a change.
    """

    def __init__(
        self,
        on_change: Callable[[], None],
        overlays: Mapping[Family, str],
        own_ports: tuple[int, ...] = (),
        echoes: set[Notice] | None = None,
        interest: Interest | None = None,
    ) -> None:
        self._on_change = on_change
        self._overlays = {name: 0 for name in overlays.values() if name}
        """The devices' indexes by name, 0 for one that is not there."""
        self._echoes = set() if echoes is None else echoes
        self._interest = interest or Interest()
        self._own_ports = frozenset(own_ports) - {0}  # 0 is the kernel itself, in the name of everybody
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
        # Opened here, not in the thread, so that no change after the constructor is missed.
        self._netlink = RouteSocket(_GROUPS | sum(_GROUPS_OF[family] for family in overlays), _BUFFER)
        self._policies = policy_news(_BUFFER)
        self._echoes.clear()  # what was written before now will not be heard
        self._find_overlays()
        self._thread = threading.Thread(target=self._run, name="kernel-monitor", daemon=True)
        self._thread.start()

    def __enter__(self) -> KernelMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the thread and close the socket; no call of `on_change` begins after this returns."""
        if not self._thread.is_alive() and self._stopped < 0:
            return
        os.eventfd_write(self._stopped, 1)
        self._thread.join()
        self._netlink.close()
        if self._policies is not None:
            self._policies.close()
        os.close(self._stopped)
        self._stopped = -1

    def _run(self) -> None:
        sources = {self._netlink.fileno(): self._receive}
        if self._policies is not None:
            sources[self._policies.fileno()] = self._receive_policies
        listen(sources, self._stopped, self._on_change, _GATHER)

    def _receive(self) -> bool:
        """Take one datagram off the socket and say whether it matters."""
        try:
            data = self._netlink.receive()
        except KernelError as error:
            return self._lost(error)
        relevant = False
        for kind, port, body in messages(data):  # all of them: each may tell the overlay's index
            relevant = self._matters(kind, port, body) or relevant
        return relevant

    def _receive_policies(self) -> bool:
        """Take one datagram about IPsec off its socket; it always matters, also where some were lost."""
        with suppress(KernelError):
            if self._policies is not None:
                self._policies.receive()
        return True

    def _lost(self, error: KernelError) -> bool:
        """Start anew where messages were lost, which counts as a change."""
        if error.code != errno.ENOBUFS:
            time.sleep(_GATHER)  # whatever it is, it must not be asked for in a circle
        self._echoes.clear()
        with suppress(KernelError):  # the next news of the device will tell
            self._find_overlays()
        return True

    def _matters(self, kind: int, port: int, body: bytes) -> bool:
        if len(body) < _IFINDEX.size:
            return False
        if kind in (_RTM_NEWLINK, _RTM_DELLINK):
            self._note_overlay(kind, body)
        if port in self._own_ports:
            return False
        if kind in _NEIGHBOUR:
            return _IFINDEX.unpack_from(body)[0] in self._overlays.values() and not self._echoed(kind, body)
        if kind in (_RTM_NEWROUTE, _RTM_DELROUTE):
            return self._route_matters(body)
        return kind in _ALWAYS

    def _route_matters(self, body: bytes) -> bool:
        found = attributes(body, RTMSG.size)
        table = U32.unpack(found[RTA_TABLE])[0] if RTA_TABLE in found else body[4]
        version = 4 if body[0] == Family.V4.af else 6
        return self._interest.matters(version, table, int.from_bytes(found.get(RTA_DST, b""), "big"), body[1])

    def _echoed(self, kind: int, body: bytes) -> bool:
        """Say whether this tells of something that we wrote; each notice is expected once."""
        told = notice(kind, body)
        if told not in self._echoes:
            return False
        self._echoes.discard(told)
        return True

    def _find_overlays(self) -> None:
        for name in self._overlays:
            with RouteSocket() as asking:
                link = find_link(asking, name)
            self._overlays[name] = link.index if link else 0

    def _note_overlay(self, kind: int, body: bytes) -> None:
        name = attributes(body, 16).get(_IFLA_IFNAME, b"").rstrip(b"\0").decode(errors="replace")
        index = _IFINDEX.unpack_from(body)[0]
        if name in self._overlays and kind == _RTM_NEWLINK:
            self._overlays[name] = index
        for overlay, known in self._overlays.items():
            if known == index and kind == _RTM_DELLINK and body[0] == 0:
                self._overlays[overlay] = 0
