"""A thread that hears of changes to firewall rules that concern flannel's chains.

The kernel tells of every change made through nftables, and so also through iptables in its usual nft form.
iptables-legacy tells nobody. Layouts: linux/netfilter/nfnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from types import TracebackType

from flannel_ebpf.base.errors import edge
from flannel_ebpf.desired.firewall_rules import IPTABLES_CHAINS, NFT_TABLES
from flannel_ebpf.kernel.netlink.listen import listen
from flannel_ebpf.kernel.netlink.route_socket import attributes, messages

_NETLINK_NETFILTER, _NFNLGRP_NFTABLES = 12, 7
_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_TABLE, _CHAIN, _RULE = {0, 2}, {3, 5}, {6, 8}  # NFT_MSG_NEW* and DEL* of each
_NFGENMSG = 4
_ATTR_TABLE, _ATTR_CHAIN, _ATTR_CHAIN_NAME = 1, 2, 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GATHER = 0.05

_CHAINS = {chain.name for chain in IPTABLES_CHAINS} | {chain.parent for chain in IPTABLES_CHAINS}
_TABLES = {chain.table for chain in IPTABLES_CHAINS}


class RulesMonitor:
    """Calls `on_change`, from its own thread, soon after rules in flannel's chains or jumps to them changed.

    Messages lost in a flood count as a change.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        with edge("netfilter's socket"):
            self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
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
        listen(self._socket.fileno(), self._stopped, self._receive, self._on_change, _GATHER)

    def _receive(self) -> bool:
        """Take one datagram off the socket and say whether it matters."""
        try:
            data = self._socket.recv(1 << 17)
        except OSError:  # ENOBUFS: some were lost
            return True
        return any(_matters(kind, body) for kind, _, body in messages(data))


def _matters(kind: int, body: bytes) -> bool:
    if kind & 0xFF00 != _SUBSYSTEM:
        return False
    found = attributes(body, _NFGENMSG)
    table = _name(found.get(_ATTR_TABLE, b""))
    if table in NFT_TABLES.values():
        return True
    what = kind & 0xFF
    if table not in _TABLES:
        return False
    if what in _RULE:
        return _name(found.get(_ATTR_CHAIN, b"")) in _CHAINS
    return what in _TABLE or (what in _CHAIN and _name(found.get(_ATTR_CHAIN_NAME, b"")) in _CHAINS)


def _name(payload: bytes) -> str:
    return payload.rstrip(b"\0").decode(errors="replace")
