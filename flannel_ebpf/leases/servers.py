"""The addresses of the servers that leases come from: no lease may take the way to them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address

from flannel_ebpf.base.family import Address


class Servers:
    """Addresses of `hosts`, names or addresses. Names are asked for on a thread of its own: DNS may hang."""

    def __init__(self, hosts: Iterable[str]) -> None:
        self.addresses: frozenset[Address] = frozenset()
        self._names: list[str] = []
        for host in hosts:
            try:
                self.addresses |= {ip_address(host.strip("[]"))}
            except ValueError:
                self._names.append(host)

    def resolve(self) -> None:
        """Find the names' addresses; returns at once. A name that has none protects nothing."""
        if self._names:
            threading.Thread(target=self._resolve, name="resolver", daemon=True).start()

    def _resolve(self) -> None:
        for name in self._names:
            with suppress(OSError, UnicodeError):
                found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
                self.addresses |= {ip_address(str(place[0]).partition("%")[0]) for *_, place in found}
