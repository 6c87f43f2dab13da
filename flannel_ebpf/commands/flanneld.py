"""Whether a network that was ours is flanneld's now, so that nobody's pods are cut off by a clean-up."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.objects import ROUTE_PROTOCOL, Object, Route
from flannel_ebpf.host import report

_NAME = "flanneld"


def signs(
    options: Options,
    network: Network,
    told: report.Content | None,
    found: Iterable[Object],
    ours: Iterable[Network],
) -> Iterator[str]:
    """Yield what speaks for a flanneld that uses the network.

    `found` is the network's part of the kernel, `ours` the destinations of routes that a `down` handed over.
    """
    for pid in _processes():
        yield f"process {pid} is a flanneld in this network namespace"
    known = set(ours)
    for route in found:
        if isinstance(route, Route) and route.protocol != ROUTE_PROTOCOL and route.dst not in known:
            yield f"the route to {route.dst} is not ours"
            break
    if (
        told
        and told["handed_over"]
        and _age(options.subnet_file) > _age(report.path_of(options.state_dir, network))
    ):
        yield f"{options.subnet_file} was written after this network was handed over"


def _processes() -> Iterator[int]:
    """Yield flannel's own daemons in our network namespace; ours, under that name, is a Python program."""
    here = os.stat("/proc/thread-self/ns/net").st_ino
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            named = (process / "comm").read_text() == f"{_NAME}\n"
            is_ours = named and "python" in os.readlink(process / "exe").rpartition("/")[2]
            if named and not is_ours and os.stat(process / "ns/net").st_ino == here:
                yield int(process.name)


def _age(path: Path) -> int:
    """Return when a file was written, 0 when it is not there."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
