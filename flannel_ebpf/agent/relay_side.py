"""The udp backend's relay process, kept beside the reconciled state: it makes the TUN that routes need."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flannel_ebpf.base.config import UdpConfig
from flannel_ebpf.base.model import Lease
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Node, udp
from flannel_ebpf.desired.backends.peer import remote
from flannel_ebpf.relay import counters
from flannel_ebpf.relay.supervise import Relay, RelaySpec

log = logging.getLogger(__name__)


def folder(state_dir: Path) -> Path:
    """Return the relay's run-time folder."""
    return state_dir / f"relay-{udp.TUN_NAME}"


def state(state_dir: Path) -> dict[str, Any]:
    """Return the relay's process id, 0 when none runs, and its counters by name (relay.counters.NAMES)."""
    pid, counted = counters.read(folder(state_dir) / "counters")
    return {"pid": pid if Path(f"/proc/{pid}/task").exists() else 0, "counters": counted}


class RelaySide:
    """Starts, adopts and tells the relay; does nothing in a network of another backend.

    `wake` is called when the relay ends by itself, so that the next pass starts it again.
    """

    def __init__(self, options: Options, wake: Callable[[], None]) -> None:
        self._options = options
        self._wake = wake
        self._relay: Relay | None = None
        self._spec: RelaySpec | None = None

    def run(self, node: Node, leases: Sequence[Lease], *, accelerated: bool) -> None:
        """See to it that the relay runs with this node's settings and peers; raises KernelError."""
        if not isinstance(node.config.backend, UdpConfig):
            return
        spec = RelaySpec(
            folder=folder(self._options.state_dir),
            tun=udp.TUN_NAME,
            bind=node.uplink.ip,
            port=node.config.backend.port,
            mtu=udp.mtu(node.config, node.uplink),
            address=node.subnet.network_address,
            network=node.config.network,
            source_check=self._options.source_check,
            batch=not accelerated,
        )
        if self._relay is None or spec != self._spec:
            self._relay, self._spec = Relay(spec, self._on_exit), spec
        self._relay.update_peers({lease.subnet: lease.public_ip for lease in remote(node, leases)})
        done = self._relay.ensure_running()
        if done != "running":
            log.info("relay on %s:%d %s", spec.bind, spec.port, done)

    def _on_exit(self, words: str) -> None:
        log.warning("%s", words)
        self._wake()
