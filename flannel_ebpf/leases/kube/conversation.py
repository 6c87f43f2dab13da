"""One connection to the API server and what is said on it: get, patch, list in pages, watch.

Shapes of requests and answers: kubernetes.io/docs/reference/using-api/api-concepts.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ssl import SSLCertVerificationError, SSLError
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode, urlsplit

from flannel_ebpf.base import tally
from flannel_ebpf.base.errors import KubeError, KubeGone, KubeRefused, KubeUnavailable
from flannel_ebpf.leases.kube.credentials import Credentials
from flannel_ebpf.leases.kube.json_stream import JsonStream

Query = Mapping[str, str | int]

TIMEOUT = 10.0
"""Seconds in which the server must say something."""
SILENCE = 150.0
"""Seconds after which a watch that says nothing is given up: bookmarks come about once a minute."""
MERGE_PATCH = "application/strategic-merge-patch+json"

_KEEPALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
)
"""A server that vanished without a word is noticed after 20 s, also while a watch has nothing to say."""


class Conversation:
    """Requests on one connection, one after the other; only `interrupt` may come from another thread.

    `on_close` is called with this object when it is closed. Every request raises KubeUnavailable and
    KubeRefused.
    """

    def __init__(
        self, server: str, credentials: Credentials, on_close: Callable[[Conversation], None]
    ) -> None:
        url = urlsplit(server)
        self._server = server
        self._base = url.path
        self._host = url.hostname or ""
        self._port = url.port or (443 if url.scheme == "https" else 80)
        self._credentials = credentials
        self._on_close = on_close
        self._http = HTTPConnection(self._host, self._port)
        self._socket: socket.socket | None = None
        self._interrupted = False

    def get(self, path: str, query: Query) -> dict[str, Any]:
        """Return one object."""
        return self._object(self._ask("GET", path, query))

    def patch(self, path: str, patch: Mapping[str, Any]) -> dict[str, Any]:
        """Merge `patch` into one object and return it as it then is."""
        return self._object(self._ask("PATCH", path, {}, json.dumps(patch).encode()))

    def list(self, path: str, query: Query, take: Callable[[dict[str, Any]], None]) -> str:
        """Hand every object of a collection to `take`, page by page; return the resourceVersion of the whole.

        A server may ignore the `limit` in `query`, so nothing is kept of an object that was taken.
        Raises KubeGone when the server forgot the state between two pages.
        """
        pages = query
        while True:
            response = self._ask("GET", path, pages)
            stream = JsonStream(response.read1)
            try:
                for item in stream.items("items"):
                    take(item)
                response.read()  # what ends the body; another request may follow
                metadata = stream.fields["metadata"]
                token, revision = metadata.get("continue"), str(metadata["resourceVersion"])
            except (OSError, HTTPException) as error:
                raise self._unavailable(error) from None
            except (ValueError, LookupError, AttributeError, TypeError) as error:
                raise KubeUnavailable(f"{self._server}: the list {path} cannot be read: {error}") from None
            if not token:
                return revision
            pages = {"limit": query["limit"], "continue": str(token)}

    def watch(self, path: str, query: Query) -> Iterator[dict[str, Any]]:
        """Yield the events of a collection, bookmarks among them, until the server ends the watch.

        An ERROR event is raised like a refused request: KubeGone when the server forgot that state.
        """
        response = self._ask("GET", path, {**query, "watch": 1, "allowWatchBookmarks": "true"})
        if self._socket:
            self._socket.settimeout(SILENCE)
        while True:
            try:
                line = response.readline()
                event = json.loads(line) if line else None
            except (OSError, HTTPException) as error:
                raise self._unavailable(error) from None
            except ValueError:
                raise KubeUnavailable(f"{self._server}: the watch of {path} broke off") from None
            if event is None:
                return
            _answered()
            if event["type"] == "ERROR":
                status = event["object"]
                raise self._error(status.get("code", 0), f"watch {path}: {status.get('message')}")
            yield event

    def interrupt(self) -> None:
        """End what is under way on another thread."""
        self._interrupted = True
        if self._socket:
            with suppress(OSError):  # not connected yet, or not any more
                # Not the TLS socket's own method, which takes its state from under the thread that reads.
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._http.close()
        if self._socket:
            self._socket.close()
        self._on_close(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, method: str, path: str, query: Query, body: bytes | None = None) -> HTTPResponse:
        """Send a request and return a good answer; a token that was replaced is read again."""
        response = self._send(method, path, query, body)
        if response.status == HTTPStatus.UNAUTHORIZED and self._credentials.refused():
            self._read(response)
            response = self._send(method, path, query, body)
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise self._refusal(response, method, path)
        return response

    def _send(self, method: str, path: str, query: Query, body: bytes | None) -> HTTPResponse:
        headers = {"Accept": "application/json", "User-Agent": "flannel-ebpf", **self._credentials.headers()}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH
        target = self._base + path + (f"?{urlencode(query)}" if query else "")
        try:
            if self._http.sock is None:
                self._http.sock = self._connect()
            self._http.request(method, target, body, headers)
            response = self._http.getresponse()
        except (OSError, HTTPException) as error:
            tally.count("kube_requests", "unavailable")
            raise self._unavailable(error) from None
        refused = response.status >= HTTPStatus.BAD_REQUEST
        tally.count("kube_requests", "refused" if refused else "ok")
        _answered()
        return response

    def _connect(self) -> socket.socket:
        """Return a socket to the server, TLS done; the address that answers first in the resolver's order."""
        failure: OSError = TimeoutError()
        for family, kind, protocol, _, address in socket.getaddrinfo(
            self._host, self._port, type=socket.SOCK_STREAM
        ):
            plain = self._socket = socket.socket(family, kind, protocol)
            try:
                plain.settimeout(TIMEOUT)
                for level, option, value in _KEEPALIVE:
                    plain.setsockopt(level, option, value)
                plain.connect(address)
                if self._interrupted:  # before there was a connection to end
                    raise TimeoutError
                context = self._credentials.tls()
                if context:
                    name = self._credentials.server_name or self._host
                    self._socket = context.wrap_socket(plain, server_hostname=name)
                return self._socket
            except OSError as error:
                plain.close()
                failure = error
        raise failure

    def _object(self, response: HTTPResponse) -> dict[str, Any]:
        found = json.loads(self._read(response) or b"null")
        if not isinstance(found, dict):
            raise KubeUnavailable(f"{self._server}: answered with something that is no object")
        return found

    def _read(self, response: HTTPResponse) -> bytes:
        try:
            return response.read()
        except (OSError, HTTPException) as error:
            raise self._unavailable(error) from None

    def _refusal(self, response: HTTPResponse, method: str, path: str) -> KubeError:
        """Return the error for an answer that is none; the server's own words name verb and resource."""
        body = self._read(response)
        try:
            message = str(json.loads(body)["message"])
        except (ValueError, LookupError, TypeError):
            message = " ".join(body[:200].decode(errors="replace").split())
        text = f"{method} {path}: {response.status} {message or response.reason}"
        if response.status == HTTPStatus.UNAUTHORIZED:
            text += f"; the credentials of {self._credentials.source} are not known there, or have expired"
        return self._error(response.status, text)

    def _error(self, code: int, text: str) -> KubeError:
        passing = code in (0, HTTPStatus.TOO_MANY_REQUESTS) or code >= HTTPStatus.INTERNAL_SERVER_ERROR
        kind = KubeGone if code == HTTPStatus.GONE else KubeUnavailable if passing else KubeRefused
        return kind(f"{self._server}: {text}", code)

    def _unavailable(self, error: Exception) -> KubeUnavailable:
        if self._interrupted:
            return KubeUnavailable(f"{self._server}: the connection was given up")
        match error:
            case SSLCertVerificationError():
                reason = f"its certificate is not accepted: {error.verify_message}"
            case SSLError():
                reason = f"TLS: {error.reason or error}"
            case TimeoutError():
                reason = "no answer in time"
            case OSError():
                reason = error.strerror or str(error)
            case _:
                reason = f"the connection broke off ({type(error).__name__})"
        return KubeUnavailable(f"{self._server}: {reason}")


def _answered() -> None:
    tally.mark("kube_answer", time.clock_gettime(time.CLOCK_BOOTTIME))
