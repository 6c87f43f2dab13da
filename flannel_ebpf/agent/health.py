"""The health server: telling probes and Prometheus how we are.

Paths and texts are flanneld's (main.go), so that probes written for it work; /metrics is ours.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from types import TracebackType
from typing import TYPE_CHECKING, Any

from flannel_ebpf.base.errors import ConfigError

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

log = logging.getLogger(__name__)

_TEXT = "text/plain; charset=utf-8"


MOST_CLIENTS = 32
"""Connections served at once: the oldest makes room for one more, so that a flood keeps no probe out."""


class HealthServer(ThreadingTCPServer):
    """Serves /healthz, /readyz and, given a registry, /metrics from threads of its own until closed.

    `ready` is asked at every /readyz and must not block. `source` names, in errors, the flags that chose
    the address. Port 0 takes a free one. Raises ConfigError when the address cannot be bound.
    """

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 1024

    def __init__(
        self,
        address: str,
        port: int,
        ready: Callable[[], bool],
        registry: CollectorRegistry | None = None,
        source: str = "--healthz-ip and --healthz-port",
    ) -> None:
        self.ready = ready
        self.registry = registry
        self._clients: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        if address == "::" and not socket.has_dualstack_ipv6():
            address = "0.0.0.0"  # noqa: S104 - "::" stands for every address of both kinds
        self.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            super().__init__((address, port), _Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                source, f"{address}:{port}", f"a free address of this host ({error})"
            ) from error
        self._stopped = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name="health", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        """Accept clients until closed; the base class would look twice a second whether it is."""
        waiting = [self.fileno(), self._stopped]
        while self._stopped not in select.select(waiting, [], [])[0]:
            self._handle_request_noblock()  # type: ignore[attr-defined]  # not in its type stub

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a client; without a descriptor for him, wait a little, for he stays in the queue."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a client on a thread of its own, where there may be one."""
        with self._lock:
            oldest = next(iter(self._clients)) if len(self._clients) >= MOST_CLIENTS else None
            self._clients[request] = None
        if oldest is not None:
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)
        super().process_request(request, client_address)

    def close_request(self, request: Any) -> None:
        """Forget a client that was served."""
        with self._lock:
            self._clients.pop(request, None)
        super().close_request(request)

    @property
    def port(self) -> int:
        """The port that was bound."""
        return int(self.server_address[1])

    def close(self) -> None:
        """Stop serving and free the port."""
        os.eventfd_write(self._stopped, 1)
        self._thread.join()
        self.server_close()
        os.close(self._stopped)

    def handle_error(self, request: object, client_address: object) -> None:
        """Log what went wrong with one client; the base class would print a trace."""
        log.debug("health request of %s failed: %s", client_address, sys.exception())

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    server: HealthServer
    timeout = 10  # a client that says nothing keeps its thread no longer

    def do_GET(self) -> None:
        status, kind, body = self._answer(self.path.partition("?")[0])
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def _answer(self, path: str) -> tuple[HTTPStatus, str, bytes]:
        if path == "/healthz":
            return HTTPStatus.OK, _TEXT, b"flanneld is running"
        if path == "/readyz":
            if self.server.ready():
                return HTTPStatus.OK, _TEXT, b"flanneld is ready"
            return HTTPStatus.SERVICE_UNAVAILABLE, _TEXT, b"flanneld is not ready yet"
        if path == "/metrics" and self.server.registry is not None:
            from prometheus_client import CONTENT_TYPE_LATEST, generate_latest  # noqa: PLC0415 - optional

            return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self.server.registry)
        return HTTPStatus.NOT_FOUND, _TEXT, b"404 page not found\n"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        log.debug(format, *args)
