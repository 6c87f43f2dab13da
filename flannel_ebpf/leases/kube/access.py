"""Where the API server is and what lets us in: flags, a kubeconfig file, or the pod's service account.

The order is client-go's (clientcmd.BuildConfigFromFlags): `--kube-api-url` wins over the file's server, and
without either the environment of a pod is asked.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.options import KubeOptions

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


@dataclass(frozen=True, slots=True)
class Pem:
    """Certificates or a key: in a file, which may be replaced while we run, or in the kubeconfig itself."""

    path: Path | None = None
    data: bytes = b""

    def read(self) -> bytes:
        """Return the text as it is now; raises OSError."""
        return self.path.read_bytes() if self.path else self.data

    def __bool__(self) -> bool:
        return bool(self.path or self.data)


@dataclass(frozen=True, slots=True)
class Access:
    """One API server and one identity; what is empty is not used.

    `server` is a URL with http or https; `source` is where all this was read, for error messages. Without
    `ca` the system's authorities count. `token_file` wins over `token`, as in client-go.
    """

    server: str
    source: str
    ca: Pem = field(default_factory=Pem)
    certificate: Pem = field(default_factory=Pem)
    key: Pem = field(default_factory=Pem)
    token: str = field(default="", repr=False)
    token_file: Path | None = None
    server_name: str = ""
    insecure: bool = False


def find_access(
    options: KubeOptions, environment: Mapping[str, str], account: Path = SERVICE_ACCOUNT
) -> Access:
    """Return how to reach the API server; raises ConfigError."""
    if options.kubeconfig_file:
        return _from_kubeconfig(Path(options.kubeconfig_file), options.kube_api_url)
    if options.kube_api_url:
        return Access(_checked(options.kube_api_url, "--kube-api-url"), "--kube-api-url")
    host, port = environment.get("KUBERNETES_SERVICE_HOST"), environment.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError(
            "--kubeconfig-file",
            None,
            "a kubeconfig file, or --kube-api-url, or a pod's KUBERNETES_SERVICE_HOST and _PORT",
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    return Access(
        _checked(server, "KUBERNETES_SERVICE_HOST"),
        str(account),
        ca=Pem(account / "ca.crt"),
        token_file=account / "token",
    )


def _from_kubeconfig(path: Path, api_url: str) -> Access:
    """Read the current context of a kubeconfig file; paths in it are relative to its folder."""
    source = f"--kubeconfig-file {path}"
    config = _read_yaml(path, source)
    name = config.get("current-context") or ""
    context = _named(config, "contexts", "context", name, source) if name else {}
    cluster = _named(config, "clusters", "cluster", context.get("cluster"), source)
    user = _named(config, "users", "user", context.get("user"), source)
    for way in ("exec", "auth-provider", "username"):
        if user.get(way):
            raise ConfigError(
                source,
                f"user {context.get('user')} with {way}",
                "a token, a tokenFile or a client certificate",
            )
    server = api_url or str(cluster.get("server") or "")
    return Access(
        _checked(server, "--kube-api-url" if api_url else f"{source}, the cluster's server"),
        source,
        ca=_pem(cluster, "certificate-authority", path, source),
        certificate=_pem(user, "client-certificate", path, source),
        key=_pem(user, "client-key", path, source),
        token=str(user.get("token") or ""),
        token_file=_beside(path, user["tokenFile"]) if user.get("tokenFile") else None,
        server_name=str(cluster.get("tls-server-name") or ""),
        insecure=cluster.get("insecure-skip-tls-verify") is True,
    )


def _read_yaml(path: Path, source: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - 1 MB that only a kubeconfig file needs

    expected = "a kubeconfig in YAML"
    try:
        config = yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise ConfigError(source, None, f"{expected} ({error.strerror})") from error
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(source, "its text", f"{expected} ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ConfigError(source, "its text", expected)
    return config


def _named(config: dict[str, Any], kind: str, what: str, name: object, source: str) -> dict[str, Any]:
    """Return the entry of `kind` called `name`, empty when there is no name."""
    if not name:
        return {}
    entries = config.get(kind)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("name") == name:
            found = entry.get(what)
            return found if isinstance(found, dict) else {}
    raise ConfigError(source, name, f"the name of one of its {kind}")


def _pem(entry: dict[str, Any], field_name: str, path: Path, source: str) -> Pem:
    """Return a certificate or key; data wins over a file, as in client-go."""
    data, file = entry.get(f"{field_name}-data"), entry.get(field_name)
    if data:
        try:
            return Pem(data=base64.b64decode(data, validate=True))
        except (binascii.Error, ValueError, TypeError):
            raise ConfigError(f"{source}, {field_name}-data", "its text", "PEM in base64") from None
    return Pem(_beside(path, file)) if file else Pem()


def _beside(path: Path, name: object) -> Path:
    return path.parent / str(name)


def _checked(server: str, source: str) -> str:
    expected = "a URL such as https://192.0.2.1:6443"
    text = server if "://" in server else f"http://{server}"  # client-go's default scheme
    try:
        url = urlsplit(text)
        fits = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        fits = False
    if not fits:
        raise ConfigError(source, server or None, expected)
    return text.rstrip("/")
