"""TLS credentials that follow their files: certificates may live for a day, and a daemon for a year."""

from __future__ import annotations

import logging
import ssl
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.base.say_once import SayOnce
from flannel_ebpf.leases.etcd.rpc import grpc

log = logging.getLogger(__name__)

Stamp = tuple[tuple[int, int], ...]


class Credentials:
    """gRPC's credentials for the options' files as they are now; flanneld reads them once.

    Raises ConfigError, when it is made, for files that cannot be used.
    """

    def __init__(self, options: EtcdOptions) -> None:
        if bool(options.certfile) != bool(options.keyfile):
            missing, given = ("--etcd-certfile", "--etcd-keyfile")[:: 1 if options.keyfile else -1]
            raise ConfigError(missing, "", f"needed together with {given}")
        self._options = options
        self._trouble = SayOnce(log)
        self._stamp = self._stamped()
        self._made = _credentials(options)

    def now(self) -> Any:
        """Return credentials for a new connection; what cannot be read leaves the former ones in use."""
        stamp = self._stamped()
        if stamp != self._stamp:
            try:
                self._made, self._stamp = _credentials(self._options), stamp
                self._trouble.over()
                log.info("the TLS files of etcd have changed; new connections use them")
            except ConfigError as error:
                self._trouble.say(f"{error}; the files read before stay in use")
        return self._made

    def _stamped(self) -> Stamp:
        """Return what changes with every replacement of a file; a rotation may be under way."""
        options = self._options
        return tuple(_stamp(path) for path in (options.cafile, options.certfile, options.keyfile) if path)


def _stamp(path: str) -> tuple[int, int]:
    try:
        found = Path(path).stat()
    except OSError:
        return (0, 0)
    return found.st_ino, found.st_mtime_ns


def _credentials(options: EtcdOptions) -> Any:
    _check_files(options)
    return grpc.ssl_channel_credentials(
        _read(options.cafile or ssl.get_default_verify_paths().cafile or ""),
        _read(options.keyfile),
        _read(options.certfile),
    )


def _check_files(options: EtcdOptions) -> None:
    """Have OpenSSL read the files: gRPC would only report failed handshakes, without a file's name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if options.cafile:
        try:
            context.load_verify_locations(options.cafile)
        except OSError as error:
            raise ConfigError(
                "--etcd-cafile", options.cafile, f"certificates in PEM ({error.strerror})"
            ) from None
    if options.certfile:
        try:
            context.load_cert_chain(options.certfile, options.keyfile, password="")
        except (OSError, ValueError) as error:
            value = f"{options.certfile} with key {options.keyfile}"
            raise ConfigError(
                "--etcd-certfile", value, f"a matching pair in PEM without password ({error})"
            ) from None


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes() if path else None
    except OSError as error:
        raise ConfigError("TLS file", path, f"a file that can be read ({error.strerror})") from error
