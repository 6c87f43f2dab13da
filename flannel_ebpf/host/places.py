"""How the files of one network are called in `--state-dir`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from ipaddress import ip_network
from pathlib import Path

from flannel_ebpf.base.family import Network


def place(state_dir: Path, network: Network, suffix: str) -> Path:
    """Return a file of a network, such as `<state_dir>/10.1.0.0-16.lock`."""
    return state_dir / f"{network.network_address}-{network.prefixlen}{suffix}"


def networks_of(state_dir: Path, suffix: str) -> Iterator[Network]:
    """Yield the networks that have a file with this suffix; what else lies there is none of ours."""
    for path in sorted(state_dir.glob(f"*{suffix}")):
        address, _, length = path.name.removesuffix(suffix).rpartition("-")
        with suppress(ValueError):
            yield ip_network(f"{address}/{length}")
