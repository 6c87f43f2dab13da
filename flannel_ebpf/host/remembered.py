"""What only memory can tell: values that we changed but did not make, so that a purge can give them back.

Everything else of ours is recognised in the kernel. One small file per network in `--state-dir`; without it a
purge leaves those values as they are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from ipaddress import IPv4Network
from pathlib import Path

from flannel_ebpf.base.errors import ConfigError

SUFFIX = ".before.json"


@dataclass(frozen=True, slots=True)
class Before:
    """What is remembered of one network.

    `sysctls` are values before our first write; `routes` the destinations of those routes that a `down`
    without purge left under flanneld's own protocol number.
    """

    sysctls: Mapping[str, str] = field(default_factory=dict)
    routes: tuple[str, ...] = ()


def path_of(state_dir: Path, network: IPv4Network) -> Path:
    """Return where the memory of a network lies."""
    return state_dir / f"{network.network_address}-{network.prefixlen}{SUFFIX}"


def read(state_dir: Path, network: IPv4Network) -> Before:
    """Return what is remembered; nothing when the file is missing or broken."""
    try:
        values = json.loads(path_of(state_dir, network).read_text())
        return Before(dict(values["sysctls"]), tuple(values["routes"]))
    except (OSError, ValueError, KeyError, TypeError):
        return Before()


def remember_sysctl(state_dir: Path, network: IPv4Network, path: str, value: str) -> None:
    """Remember a value that is about to be changed, unless an older one is known; raises ConfigError."""
    known = read(state_dir, network)
    if path not in known.sysctls:
        _write(state_dir, network, replace(known, sysctls={**known.sysctls, path: value}))


def remember_routes(state_dir: Path, network: IPv4Network, routes: Iterable[IPv4Network]) -> None:
    """Remember destinations whose routes no longer carry our mark; raises ConfigError."""
    known = read(state_dir, network)
    every = tuple(sorted({*known.routes, *map(str, routes)}))
    if every != known.routes:
        _write(state_dir, network, replace(known, routes=every))


def _write(state_dir: Path, network: IPv4Network, what: Before) -> None:
    path = path_of(state_dir, network)
    new = path.with_name(path.name + ".new")
    try:
        state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
        new.write_text(json.dumps(asdict(what)) + "\n")
        new.rename(path)
    except OSError as error:
        raise ConfigError(
            "--state-dir", str(state_dir), f"a folder that can be written ({error.strerror})"
        ) from error
