"""flanneld on a node of a lab, in the place of our daemon."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flannel_ebpf.lab import Node, processes
from flannel_ebpf.lab.processes import Process
from tests.polls import eventually


class Flanneld:
    """The real program on one node; it keeps its files where our daemon would."""

    def __init__(self, program: Path, node: Node, *arguments: str) -> None:
        self.node = node
        self.log = node.folder / "flanneld.log"
        self._line = [
            *("env", f"NODE_NAME={node.name}"),
            str(program),
            *node.source_args(),
            "-iface=eth0",
            f"-subnet-file={node.subnet_file}",
            *arguments,
        ]
        self._process: Process | None = None

    def start(self) -> None:
        """Start it and wait until it has written subnet.env, which it does last."""
        before = self.node.subnet_file.stat().st_mtime_ns if self.node.subnet_file.exists() else 0
        pidfile = self.node.folder / "flanneld.pid"
        self._process = processes.spawn(self.node.ns, self._line, log=self.log, pidfile=pidfile)
        eventually(lambda: self._wrote_since(before), self.tail, 30)

    def stop(self) -> None:
        """End it as systemd would; the overlay stays."""
        if self._process:
            processes.end([self._process], 30)

    @property
    def running(self) -> bool:
        """Whether it still runs: it ends by itself when its own lease is deleted."""
        return self._process is not None and self._process.alive

    def said(self) -> str:
        """Return its log."""
        return self.log.read_text(errors="replace")

    def tail(self) -> str:
        """Return the end of its log."""
        return processes.tail(self.log)

    def _wrote_since(self, before: int) -> bool:
        assert self.running, self.tail()
        return self.node.subnet_file.exists() and self.node.subnet_file.stat().st_mtime_ns > before


def started(program: Path, nodes: Sequence[Node], *arguments: str) -> list[Flanneld]:
    """Start it on each of these nodes."""
    daemons = [Flanneld(program, node, *arguments) for node in nodes]
    for daemon in daemons:
        daemon.start()
    return daemons
