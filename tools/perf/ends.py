"""Client and server of a mode: their processes, each on a core of its own, and their kernel's counters."""

from __future__ import annotations

import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path as File
from types import TracebackType
from typing import Self

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Family
from flannel_ebpf.contract.enums import Hook
from flannel_ebpf.lab import Host, Lab
from flannel_ebpf.lab.counters import reasons
from perf.modes import Mode
from perf.proof import DEVICES, Path, device_packets

SERVER_CORE, CLIENT_CORE = "0", "1"
"""Every step of a packet's way runs on its sender's core: one for each side keeps the directions apart."""


class Ends:
    """The two hosts that talk, their nodes, and whatever was started in them."""

    def __init__(self, lab: Lab, mode: Mode) -> None:
        self.lab = lab
        self.mode = mode
        self.client: Host = lab.pod("n1p1") if mode.pods else lab.node("n1")
        self.server: Host = lab.pod("n2p1") if mode.pods else lab.node("n2")
        self.family = mode.family
        self.to = str(self.server.at(mode.family))
        self._processes: list[subprocess.Popen[str]] = []
        self._before: Path = Counter()
        self._servers: dict[str, list[int]] = {}
        # Their /proc/<pid>/net is that of their namespace, read without starting anything.
        self._anchors = {
            host.ns: self.start(host, ["sleep", "infinity"])
            for host in (self.client, self.server, *lab.nodes)
        }

    def start(self, host: Host, command: Sequence[str], core: str | None = None) -> subprocess.Popen[str]:
        """Start a process that `close` ends."""
        pinned = ["taskset", "-c", core, *command] if core else command
        process = host.popen(pinned, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        return process

    def serve(self, command: Sequence[str], port: int) -> None:
        """Start a server and wait until it has its port; LabError when it has not within 5 s."""
        process = self.start(self.server, command, SERVER_CORE)
        self._servers.setdefault(command[0], []).append(process.pid)
        deadline = time.monotonic() + 5
        while f":{port} " not in self.server.run(["ss", "-Hltun"]).stdout:
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"{command[0]} does not listen on port {port} in {self.server.name}")
            time.sleep(0.02)

    def drive(self, command: Sequence[str], core: str = CLIENT_CORE) -> str:
        """Run a client to its end and return what it wrote."""
        return self.client.run(["taskset", "-c", core, *command], timeout=20.0).stdout

    @contextmanager
    def driving(self, command: Sequence[str], core: str = CLIENT_CORE) -> Iterator[subprocess.Popen[str]]:
        """Have a client run during the block; afterwards it is killed."""
        pinned = ["taskset", "-c", core, *command]
        process = self.client.popen(pinned, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        self._processes.append(process)
        try:
            yield process
        finally:
            self.end(process)

    def servers(self, program: str) -> list[int]:
        """Return the process ids of the servers that run `program`."""
        return self._servers[program]

    def net(self, host: Host, file: str) -> str:
        """Return /proc/net/`file` of a host."""
        return File(f"/proc/{self._anchors[host.ns].pid}/net/{file}").read_text()

    def udp_received(self) -> int:
        """Return how many datagrams the server's sockets were given and its processes have read."""
        if self.family is Family.V6:
            lines = (line.split() for line in self.net(self.server, "snmp6").splitlines())
            return next(int(value) for name, value in lines if name == "Udp6InDatagrams")
        names, values = (
            line.split() for line in self.net(self.server, "snmp").splitlines() if line[:4] == "Udp:"
        )
        return int(values[names.index("InDatagrams")])

    def mark(self) -> None:
        """Have the path begin here: a measurement starts, or its warm-up is over."""
        self._before = self._counters()

    def path(self) -> Path:
        """Return what the packets since the last mark went through."""
        path = self._counters()
        path.subtract(self._before)
        return path

    def _counters(self) -> Path:
        path: Path = Counter()
        for host in (self.client, self.server):
            path["packets"] += device_packets(self.net(host, "dev")).get("eth0", 0)
        for node in self.lab.nodes:
            devices = device_packets(self.net(node, "dev"))
            for name in DEVICES:
                path[name] += devices.get(name, 0)
            if self.mode.fastpath:
                for (hook, reason), packets in reasons(node).items():
                    if hook in (Hook.FROM_POD, Hook.FROM_PEER):
                        path[reason.name] += packets
        return path

    def close(self) -> None:
        """End every process that was started here."""
        for process in list(self._processes):
            self.end(process)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def end(self, process: subprocess.Popen[str]) -> None:
        """Kill a process that was started here."""
        self._processes.remove(process)
        process.kill()
        process.wait()
        if process.stdout:
            process.stdout.close()
