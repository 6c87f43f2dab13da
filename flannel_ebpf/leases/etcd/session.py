"""One connection to one etcd endpoint, with the token that the endpoint gave us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from flannel_ebpf.base.errors import EtcdError, EtcdRefused, EtcdTooMuch, EtcdUnavailable
from flannel_ebpf.leases.etcd import messages
from flannel_ebpf.leases.etcd.rpc import grpc

RPC_TIMEOUT = 5.0
"""Seconds that one endpoint may take over one request."""

MAX_MESSAGE = 64 << 20
"""Octets of the largest answer that is taken."""

_CHANNEL_OPTIONS = [
    # A frozen server answers no ping. Without http2.ping_timeout_ms, gRPC waits 70 s whatever the
    # keepalive timeout says; with it, 15 s.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # etcd stands in the cluster; a web proxy in the environment is not the way to it.
    ("grpc.enable_http_proxy", 0),
]

_REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.PERMISSION_DENIED,
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.OUT_OF_RANGE,
    grpc.StatusCode.UNIMPLEMENTED,
}

_STALE_TOKEN = (
    "invalid auth token",
    "user name is empty",
    "revision of auth store is old",
    "user name not found",
)
"""What etcd answers when the token expired, or when the server or its auth settings were replaced."""

_TOO_LARGE = "Received message larger than max"
"""gRPC's words; etcd has the same code for a full database and for too many requests."""

_HINTS = (
    ("CERTIFICATE_VERIFY_FAILED", "--etcd-cafile does not vouch for the server's certificate"),
    ("TSI_DATA_CORRUPTED", "it wants another client certificate: --etcd-certfile and --etcd-keyfile"),
    ("CERTIFICATE_REQUIRED", "it wants a client certificate: --etcd-certfile and --etcd-keyfile"),
    ("WRONG_VERSION_NUMBER", "it speaks no TLS: http:// in --etcd-endpoints"),
    ("Handshake read failed", "it may speak no TLS: http:// in --etcd-endpoints"),
    ("Socket closed", "it may speak TLS: https:// in --etcd-endpoints"),
)
"""What gRPC's words mean to whoever set this up; the first that fits counts."""


_NO_TOKEN = ""
"""In place of a token while the server has auth turned off: any refusal may mean that it is on now."""


class StaleToken(EtcdRefused):
    """The endpoint does not know our token (any more); logging in again helps."""


class Session:
    """A channel to `target` ("host:port"), which dials on first use.

    `credentials` None means plain text. With a `username` it logs in before the first request.
    """

    def __init__(self, target: str, credentials: Any, username: str, password: str) -> None:
        self.target = target
        self._username, self._password = username, password
        self._token: str | None = None
        if credentials is None:
            self._channel = grpc.insecure_channel(target, _CHANNEL_OPTIONS)
        else:
            self._channel = grpc.secure_channel(target, credentials, _CHANNEL_OPTIONS)

    def ask(self, name: str, request: Any, timeout: float = RPC_TIMEOUT) -> Any:
        """Send one request of an RPC such as "KV/Range" and return its response.

        Raises EtcdUnavailable, or EtcdRefused after a second try with a fresh token.
        """
        try:
            return self._unary(name, request, self._metadata(), timeout)
        except EtcdRefused as error:
            if not isinstance(error, StaleToken) and self._token != _NO_TOKEN:
                raise
        self.forget_token()
        return self._unary(name, request, self._metadata(), timeout)

    def watch(self, requests: Iterator[Any]) -> Any:
        """Open a watch stream: an iterable call that can be cancelled. Its errors are for `translate`."""
        path, request, response = messages.method("Watch/Watch")
        metadata = self._metadata()
        try:
            call = self._channel.stream_stream(path, request.SerializeToString, response.FromString)
            return call(requests, metadata=metadata)
        except ValueError as error:
            raise EtcdUnavailable(f"{self.target}: {error}") from None

    def forget_token(self) -> None:
        """Log in again before the next request."""
        self._token = None

    def close(self) -> None:
        """Close the connection; whatever still uses it ends with EtcdUnavailable."""
        self._channel.close()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        """Return what goes with every request: the token, and the wish to be told of a lost leader."""
        if self._username and self._token is None:
            self._token = self._login()
        leader = (("hasleader", "true"),)
        return (*leader, ("token", self._token)) if self._token else leader

    def _login(self) -> str:
        request = messages.AuthenticateRequest(name=self._username, password=self._password)
        try:
            return str(self._unary("Auth/Authenticate", request, (), RPC_TIMEOUT).token)
        except EtcdRefused as error:
            if "authentication is not enabled" in str(error):
                return _NO_TOKEN
            raise

    def _unary(self, name: str, request: Any, metadata: tuple[tuple[str, str], ...], timeout: float) -> Any:
        path, request_type, response_type = messages.method(name)
        try:
            call = self._channel.unary_unary(path, request_type.SerializeToString, response_type.FromString)
            return call(request, timeout=timeout, metadata=metadata)
        except grpc.RpcError as error:
            raise translate(self.target, error) from None
        except ValueError as error:  # the channel was closed by another thread
            raise EtcdUnavailable(f"{self.target}: {error}") from None


def translate(target: str, error: Any) -> EtcdError:
    """Return our error for gRPC's: a refusal, or an endpoint that did not serve us."""
    code, details = error.code(), " ".join(str(error.details()).split())
    text = f"{target}: {details}" if details else f"{target}: {code.name.lower()}"
    if code not in _REFUSALS:
        hint = next((f" ({meaning})" for words, meaning in _HINTS if words in details), "")
        return EtcdUnavailable(text + hint)
    if any(phrase in details for phrase in _STALE_TOKEN):
        return StaleToken(text)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and _TOO_LARGE in details:
        return EtcdTooMuch(text)
    return EtcdRefused(text)
