"""What only memory can tell: values that we changed but did not make, so that a purge can give them back.

Everything else of ours is recognised in the kernel. One small file per network in `--state-dir`; without it a
purge leaves those values as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Network, in_order
from flannel_ebpf.host.files import read_small, replace_file
from flannel_ebpf.host.places import place

SUFFIX = ".before.json"

_SYSCTL = re.compile(r"net(/[\w-][\w.-]*)+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Before:
    """What is remembered of one network.

    `sysctls` are values before our first write; `routes` the destinations of those routes that a `down`
    without purge left under flanneld's own protocol number.
    """

    sysctls: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[Network, ...] = ()


def path_of(state_dir: Path, network: Network) -> Path:
    """Return where the memory of a network lies."""
    return place(state_dir, network, SUFFIX)


def read(state_dir: Path, network: Network) -> Before:
    """Return what is remembered; nothing when the file is missing or broken."""
    try:
        values = json.loads(read_small(path_of(state_dir, network)))
        sysctls = {path: value for path, value in values["sysctls"].items() if _is_ours(path, value)}
        return Before(sysctls, tuple(map(ip_network, values["routes"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return Before()


def _is_ours(path: object, value: object) -> bool:
    """Say whether this is a value of the network stack: what is read here is written there, by root."""
    return isinstance(path, str) and isinstance(value, str) and bool(_SYSCTL.fullmatch(path))


def remember_sysctl(state_dir: Path, network: Network, path: str, value: str) -> None:
    """Remember a value that is about to be changed, unless an older one is known; raises ConfigError."""
    known = read(state_dir, network)
    if path not in known.sysctls:
        _write(state_dir, network, replace(known, sysctls={**known.sysctls, path: value}))


def forget_sysctls(state_dir: Path, network: Network) -> None:
    """Forget values that have been given back; raises ConfigError."""
    known = read(state_dir, network)
    if known.sysctls:
        _write(state_dir, network, replace(known, sysctls={}))


def remember_routes(state_dir: Path, network: Network, routes: Iterable[Network]) -> None:
    """Remember destinations whose routes no longer carry our mark; raises ConfigError."""
    known = read(state_dir, network)
    every = tuple(sorted({*known.routes, *routes}, key=in_order))
    if every != known.routes:
        _write(state_dir, network, replace(known, routes=every))


def _write(state_dir: Path, network: Network, what: Before) -> None:
    text = json.dumps({"sysctls": dict(what.sysctls), "routes": [str(route) for route in what.routes]})
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace_file(path_of(state_dir, network), text + "\n")
    except OSError as error:
        raise ConfigError(
            "--state-dir", str(state_dir), f"a folder that can be written ({error.strerror})"
        ) from error
