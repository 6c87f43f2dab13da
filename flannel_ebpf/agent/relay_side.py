"""The udp backend's relay in a pass: the process that serves the TUN device, and its table of peers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

from flannel_ebpf.agent.side import Round
from flannel_ebpf.base.config import UdpConfig
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Family, ipv4
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import udp
from flannel_ebpf.desired.objects import Object, RelayPeer, RelayProcess, Scope
from flannel_ebpf.desired.plan import Failure, Op, Put
from flannel_ebpf.relay import counters
from flannel_ebpf.relay.spec import RelaySpec
from flannel_ebpf.relay.supervise import Relay

log = logging.getLogger(__name__)


def folder(state_dir: Path) -> Path:
    """Return the relay's run-time folder."""
    return state_dir / f"relay-{udp.TUN_NAME}"


def state(state_dir: Path) -> dict[str, Any]:
    """Return the relay's process id, 0 when none runs, and its counters by name (relay.counters.NAMES)."""
    pid, counted = counters.read(folder(state_dir) / "counters")
    return {"pid": pid if Path(f"/proc/{pid}/task").exists() else 0, "counters": counted}


class RelaySide:
    """Starts, adopts and tells the relay; without one in a network of another backend.

    `batch` is off on a node whose programs carry what the relay would. `wake` is called when the relay ends
    by itself, so that the next pass starts it again.
    """

    kinds = (RelayProcess, RelayPeer)

    def __init__(self, options: Options, wake: Callable[[], None], *, batch: bool) -> None:
        self._options = options
        self._wake = wake
        self._batch = batch
        self._relay: Relay | None = None

    def wanted(self, now: Round) -> list[Object]:
        """Return the relay with this node's settings; its peers are among the backend's objects."""
        node, stack = now.node, now.node.stack(Family.V4)
        if stack is None or not isinstance(node.config.backend, UdpConfig):
            return []
        spec = RelaySpec(
            folder=folder(self._options.state_dir),
            tun=udp.TUN_NAME,
            bind=ipv4(stack.uplink.ip),
            port=node.config.backend.port,
            mtu=udp.mtu(node.config, stack.uplink),
            address=ipv4(stack.subnet.network_address),
            network=IPv4Network(str(stack.network)),
            source_check=self._options.source_check,
            batch=self._batch,
        )
        if self._relay is None or spec != self._relay.spec:
            if self._relay:
                self._relay.forget()
            self._relay = Relay(spec, self._on_exit)
        return [RelayProcess(spec.tun, tuple(spec.command()))]

    def read(self, now: Round, wanted: Sequence[Object]) -> list[Object]:
        """Return the relay that runs, whatever its settings, and the peers that it has been told of."""
        if self._relay is None:
            return []
        running = self._relay.running()
        process = [RelayProcess(self._relay.spec.tun, tuple(running))] if running else []
        return [*process, *(RelayPeer(subnet, ip) for subnet, ip in self._relay.peers().items())]

    def apply(self, ops: Sequence[Op], scope: Scope) -> list[Failure]:
        """Tell the relay its peers, or see to it that it runs; return what failed."""
        relay = self._relay
        if relay is None:
            return []
        try:
            if any(isinstance(op.obj, RelayProcess) for op in ops):
                log.info("relay on %s:%d %s", relay.spec.bind, relay.spec.port, relay.ensure_running())
            self._tell(relay, ops)
        except KernelError as error:
            return [Failure(op, error) for op in ops[:1]]
        return []

    def _tell(self, relay: Relay, ops: Sequence[Op]) -> None:
        changed = [(op, op.obj) for op in ops if isinstance(op.obj, RelayPeer)]
        if not changed:
            return
        table = relay.peers()
        for op, peer in changed:
            if isinstance(op, Put):
                table[peer.subnet] = peer.public_ip
            else:
                table.pop(peer.subnet, None)
        relay.update_peers(table)

    def _on_exit(self, words: str) -> None:
        log.warning("%s", words)
        self._wake()
