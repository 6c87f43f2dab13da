"""What proves the API server to us and us to it, read again as the kubelet replaces the files."""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
from pathlib import Path

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.leases.kube.access import Access

log = logging.getLogger(__name__)

TOKEN_LIFE = 60.0
"""Seconds after which a token file is read again, as client-go does; tokens outlive their replacement."""


class Credentials:
    """The identity of one `Access`. Safe for threads.

    All files are read once here, which raises ConfigError when one is missing or broken. Later a file that
    cannot be read leaves in use what was read before.
    """

    def __init__(self, access: Access) -> None:
        self._access = access
        self._lock = threading.Lock()
        self._token = access.token
        self._token_due = 0.0
        self._pem = b"", b"", b""
        self._tls: ssl.SSLContext | None = None
        if access.token_file:
            self._token = _read_token(access.token_file)
            self._token_due = time.monotonic() + TOKEN_LIFE
        if access.server.startswith("https:"):
            self._tls = self._make_tls(*self._read_pem())
            if access.insecure:
                log.warning("%s: the API server's certificate is not checked", access.source)

    def headers(self) -> dict[str, str]:
        """Return what names us in a request, nothing for a client certificate or nobody."""
        with self._lock:
            if self._access.token_file and time.monotonic() >= self._token_due:
                self._refresh_token(self._access.token_file)
            return {"Authorization": f"Bearer {self._token}"} if self._token else {}

    def refused(self) -> bool:
        """Read the token again, after the server did not take it; return whether it is another one now."""
        with self._lock:
            before = self._token
            if self._access.token_file:
                self._refresh_token(self._access.token_file)
            return self._token != before

    def tls(self) -> ssl.SSLContext | None:
        """Return the context for a new connection, None for plain HTTP."""
        with self._lock:
            try:
                pem = self._read_pem() if self._tls else self._pem
                if pem != self._pem:
                    self._tls = self._make_tls(*pem)
            except ConfigError as error:
                log.warning("what was read before is kept: %s", error)
            return self._tls

    @property
    def source(self) -> str:
        """Where all this was read, for error messages."""
        return self._access.source

    @property
    def server_name(self) -> str:
        """The name that the server's certificate should have, "" for the one in its URL."""
        return self._access.server_name

    def _refresh_token(self, path: Path) -> None:
        self._token_due = time.monotonic() + TOKEN_LIFE
        try:
            self._token = _read_token(path)
        except ConfigError as error:
            log.warning("the token read before is kept: %s", error)

    def _read_pem(self) -> tuple[bytes, bytes, bytes]:
        access = self._access
        try:
            return access.ca.read(), access.certificate.read(), access.key.read()
        except OSError as error:
            raise ConfigError(access.source, error.filename, f"a PEM file ({error.strerror})") from error

    def _make_tls(self, ca: bytes, certificate: bytes, key: bytes) -> ssl.SSLContext:
        source = self._access.source
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            if self._access.insecure:
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            elif ca:
                context.load_verify_locations(cadata=ca.decode("ascii"))
            else:
                context.load_default_certs()
        except ValueError as error:  # ssl.SSLError is none; UnicodeDecodeError is
            raise ConfigError(source, "certificate-authority", f"certificates in PEM ({error})") from error
        except ssl.SSLError as error:
            raise ConfigError(
                source, "certificate-authority", f"certificates in PEM ({error.reason})"
            ) from error
        if certificate:
            try:
                _load_chain(context, certificate, key)
            except (OSError, ValueError) as error:
                expected = f"a matching pair in PEM without password ({error})"
                raise ConfigError(source, "client-certificate and client-key", expected) from error
        self._pem = ca, certificate, key
        return context


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError("token file", str(path), f"a service account's token ({error})") from error
    if not token:
        raise ConfigError("token file", str(path), "a service account's token; it is empty")
    return token


def _load_chain(context: ssl.SSLContext, certificate: bytes, key: bytes) -> None:
    """Load what may be in memory only: OpenSSL's interface takes nothing but file names."""
    fd = os.memfd_create("client-certificate")
    try:
        os.write(fd, certificate.rstrip() + b"\n" + key)
        context.load_cert_chain(f"/proc/self/fd/{fd}", password="")
    finally:
        os.close(fd)
