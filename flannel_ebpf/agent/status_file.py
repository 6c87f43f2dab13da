"""What the daemon last did, in a file for `flannel-ebpf status`: everything else is read from the kernel."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.base.model import Lease
from flannel_ebpf.desired.backends import Node, backend_of
from flannel_ebpf.leases.cluster import View

log = logging.getLogger(__name__)


SUFFIX = ".status.json"


def path_of(state_dir: Path, network: IPv4Network) -> Path:
    """Return where the report of a network lies."""
    return state_dir / f"{network.network_address}-{network.prefixlen}{SUFFIX}"


def read_all(state_dir: Path) -> list[dict[str, Any]]:
    """Return the reports in `state_dir`, one per network; a broken file is left out."""
    found = []
    for path in sorted(state_dir.glob(f"*{SUFFIX}")):
        with contextlib.suppress(OSError, ValueError):
            found.append(json.loads(path.read_text()))
    return found


def read(state_dir: Path, network: IPv4Network) -> dict[str, Any]:
    """Return the report of one network, empty when there is none or it is broken."""
    try:
        found = json.loads(path_of(state_dir, network).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Report:
    """Writes the report when it changed; a report that cannot be written is a warning, once."""

    def __init__(self, state_dir: Path, asked: str) -> None:
        self._state_dir = state_dir
        self._asked = asked
        self._written: dict[str, Any] = {}
        self._warned = False

    def write(self, node: Node, lease: Lease, view: View, outcome: Outcome) -> None:
        """Replace the report by one of this pass."""
        content = {
            "pid": os.getpid(),
            "network": str(node.config.network),
            "backend": node.config.backend_type,
            "overlay": backend_of(node.config).overlay_name(node.config),
            "uplink": node.uplink.name,
            "public_ip": str(node.public_ip),
            "subnet": str(node.subnet),
            "reservation": lease.etcd_lease == 0,
            "datapath": {
                "asked": self._asked,
                "accelerated": outcome.accelerated,
                "attach": outcome.attach,
                "why_not": outcome.why_not,
            },
            "peers": {"wanted": len(outcome.peers), "held": view.doubt},
            "pods": outcome.pods,
            "skipped": [f"{one.key}: {one.why}" for one in (*view.skipped, *outcome.skipped)],
            "failures": [str(error) for error in outcome.errors],
        }
        if content == self._written:
            return
        path = path_of(self._state_dir, node.config.network)
        new = path.with_name(path.name + ".new")
        try:
            new.write_text(json.dumps(content, indent=2) + "\n")
            new.rename(path)
        except OSError as error:
            if not self._warned:
                log.warning("--state-dir: %s cannot be written: %s", path, error.strerror)
            self._warned = True
            return
        self._written = content
