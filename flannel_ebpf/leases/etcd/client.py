"""An etcd v3 client over several endpoints: fails over, logs in, and raises only our own errors."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from flannel_ebpf.base import tally
from flannel_ebpf.base.errors import ConfigError, EtcdError, EtcdRefused, EtcdUnavailable, SourceClosed
from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.leases.etcd.session import Session
from flannel_ebpf.leases.etcd.tls import Credentials

log = logging.getLogger(__name__)


class EtcdClient:
    """Sends requests to the endpoint in use, and moves to the next one when it fails.

    Safe for threads. Connects on first use; a server that is away is found out by the first request.
    """

    def __init__(self, options: EtcdOptions) -> None:
        """Check the options; raises ConfigError, also for TLS files that cannot be read."""
        if not options.endpoints:
            raise ConfigError("--etcd-endpoints", "", "at least one URL such as http://127.0.0.1:2379")
        if options.password and not options.username:
            raise ConfigError("--etcd-username", "", "needed together with --etcd-password")
        self._options = options
        self._targets = tuple(_parse_endpoint(url) for url in options.endpoints)
        self._credentials = Credentials(options)
        if (options.cafile or options.certfile) and not any(scheme == "https" for scheme, _ in self._targets):
            log.warning("the TLS files are not used: every one of --etcd-endpoints is http://, none https://")
        self._lock = threading.Lock()
        self._turn = 0
        self._session: Session | None = None
        self._closed = False

    def ask(self, name: str, request: Any) -> Any:
        """Send `request` to an RPC such as "KV/Range", trying every endpoint, and return the response.

        One try more than there are endpoints, because the first may meet a connection that died unnoticed.
        A request may so be carried out twice: callers make them safe to repeat.
        Raises EtcdUnavailable with each endpoint's reason, SourceClosed, EtcdRefused; `after_silence` of that
        one says whether an endpoint before it may have carried the request out.
        """
        failures: dict[str, str] = {}
        for _ in range(len(self._targets) + 1):
            session = self.session()
            try:
                return _counted(session, name, request)
            except EtcdRefused as error:
                error.after_silence = bool(failures)
                raise
            except EtcdUnavailable as error:
                if self._closed:
                    raise SourceClosed("the etcd client was closed") from None
                failures[session.target] = str(error)
                self.drop(session)
        raise EtcdUnavailable("no etcd endpoint answers: " + "; ".join(failures.values()))

    def session(self) -> Session:
        """Return the session in use, made if there is none; raises SourceClosed after `close`."""
        with self._lock:
            if self._closed:
                raise SourceClosed("the etcd client was closed")
            if self._session is None:
                scheme, target = self._targets[self._turn % len(self._targets)]
                credentials = self._credentials.now() if scheme == "https" else None
                options = self._options
                self._session = Session(target, credentials, options.username, options.password)
            return self._session

    def drop(self, session: Session) -> None:
        """Give up on a session that failed: the next request goes to the next endpoint."""
        with self._lock:
            if self._session is session:
                self._session = None
                self._turn += 1
        session.close()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    @property
    def hosts(self) -> list[str]:
        """The endpoints' names or addresses."""
        return [target.rpartition(":")[0] for _, target in self._targets]

    def reconnect(self) -> None:
        """Leave the connection in use: our end of it may be an address that is gone, which nothing tells."""
        with self._lock:
            session = self._session
        if session is not None:
            self.drop(session)

    def close(self) -> None:
        """End every request that is under way; they and later ones raise SourceClosed."""
        with self._lock:
            self._closed = True
            session, self._session = self._session, None
        if session is not None:
            session.close()


def _counted(session: Session, name: str, request: Any) -> Any:
    """Ask, and count how that went."""
    begun = time.monotonic()
    try:
        response = session.ask(name, request)
    except EtcdError as error:
        tally.count("etcd_requests", "refused" if isinstance(error, EtcdRefused) else "unavailable")
        raise
    tally.count("etcd_requests", "ok")
    tally.count("etcd_request_seconds", by=time.monotonic() - begun)
    tally.mark("etcd_answer", time.clock_gettime(time.CLOCK_BOOTTIME))
    return response


def _parse_endpoint(url: str) -> tuple[str, str]:
    """Return scheme and "host:port" of an endpoint URL; raises ConfigError."""
    expected = "an URL such as http://127.0.0.1:2379 or https://etcd1.example.org:2379"
    text = url.strip()
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        port = parts.port
    except ValueError:
        raise ConfigError("--etcd-endpoints", url, expected) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not port or parts.path not in ("", "/"):
        raise ConfigError("--etcd-endpoints", url, expected)
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return parts.scheme, f"{host}:{port}"
