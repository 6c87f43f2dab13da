"""A thread that hears of changes to firewall rules.

The kernel tells of every change made through nftables, and so also through iptables in its usual nft form.
iptables-legacy tells nobody.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Collection
from types import TracebackType

from flannel_ebpf.base.errors import edge
from flannel_ebpf.desired.firewall_rules import IPTABLES_CHAINS, NFT_TABLES
from flannel_ebpf.desired.proof.rules import ChainName, TableName
from flannel_ebpf.kernel.firewall.nfnetlink import NETLINK_NETFILTER
from flannel_ebpf.kernel.firewall.parts import Part, parts_in
from flannel_ebpf.kernel.netlink.listen import listen
from flannel_ebpf.kernel.netlink.route_socket import messages

_NFNLGRP_NFTABLES = 7
_SOL_NETLINK, _ADD_MEMBERSHIP, _SO_RCVBUFFORCE = 270, 1, 33
_BUFFER = 4 << 20
_GATHER = 0.0
"""Seconds in which nothing is heard after flannel's own rules changed: `on_touch` may never be late."""

_CHAINS = {chain.name for chain in IPTABLES_CHAINS} | {chain.parent for chain in IPTABLES_CHAINS}
_TABLES = {chain.table for chain in IPTABLES_CHAINS}


class RulesMonitor:
    """Calls, from its own thread, `on_touch` at once with the parts that changed, None if any may have.

    `on_change` it calls soon after rules in flannel's chains or jumps to them changed. Messages lost in a
    flood count as a change of everything.
    """

    def __init__(
        self, on_change: Callable[[], None], on_touch: Callable[[Collection[Part] | None], None]
    ) -> None:
        self._on_change = on_change
        self._on_touch = on_touch
        with edge("netfilter's socket"):
            self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, _BUFFER)
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _NFNLGRP_NFTABLES)
        self._thread = threading.Thread(target=self._run, name="rules-monitor", daemon=True)
        self._thread.start()

    def __enter__(self) -> RulesMonitor:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.eventfd_write(self._stopped, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._stopped)

    def _run(self) -> None:
        listen({self._socket.fileno(): self._receive}, self._stopped, self._on_change, _GATHER)

    def _receive(self) -> bool:
        """Take one datagram off the socket and say whether flannel's rules may have changed."""
        try:
            data = self._socket.recv(1 << 17)
        except OSError:  # ENOBUFS: some were lost
            self._on_touch(None)
            return True
        parts = {part for kind, _, body in messages(data) for part in parts_in(kind, body)}
        if parts:
            self._on_touch(parts)
        return any(_is_flannels(part) for part in parts)


def _is_flannels(part: Part) -> bool:
    table = part if isinstance(part, TableName) else part.table
    if table.name in NFT_TABLES.values():
        return True
    if table.kind not in {"ip", "ip6"} or table.name not in _TABLES:
        return False
    return isinstance(part, TableName) or (isinstance(part, ChainName) and part.name in _CHAINS)
