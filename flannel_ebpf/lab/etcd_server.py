"""A real etcd server in the switch namespace, and etcdctl pointed at it."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from ipaddress import ip_network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Network
from flannel_ebpf.lab import netns
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.processes import Process, spawn, tail
from flannel_ebpf.lab.spec import ETCD_ENDPOINT, ETCD_IP, LabSpec

CLIENT_PORT = 2379


class EtcdServer:
    """etcd of one lab: its data, log and pid file lie in `<lab>/etcd`."""

    def __init__(self, spec: LabSpec) -> None:
        self.ns = spec.switch_ns
        self.prefix = spec.etcd_prefix
        self.folder: Path = spec.folder / "etcd"
        self.log = self.folder / "etcd.log"
        self.pidfile = self.folder / "etcd.pid"

    @property
    def process(self) -> Process | None:
        """The running server, None when it has ended."""
        return Process.load(self.pidfile)

    def start(self, deadline: float = 60.0) -> None:
        """Start the server and wait until it takes connections.

        Raises LabError with the end of its log when it ends or takes longer than `deadline` seconds.
        """
        self.folder.mkdir(exist_ok=True)
        peer = f"http://{ETCD_IP}:2380"
        command = [
            "etcd",
            "--name=lab",
            f"--data-dir={self.folder / 'data'}",
            f"--listen-client-urls={ETCD_ENDPOINT}",
            f"--advertise-client-urls={ETCD_ENDPOINT}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=lab={peer}",
            "--logger=zap",
            "--log-level=warn",
        ]
        process = spawn(self.ns, command, log=self.log, pidfile=self.pidfile)
        end = time.monotonic() + deadline
        while not _listens(process, CLIENT_PORT):
            if not process.alive or time.monotonic() > end:
                raise LabError(
                    f"etcd does not listen on {ETCD_ENDPOINT}; the end of its log:\n{tail(self.log)}"
                )
            time.sleep(0.02)

    def ctl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run etcdctl (API 3) with `arguments` and return its output; raises LabError when it fails."""
        command = ["env", "ETCDCTL_API=3", "etcdctl", f"--endpoints={ETCD_ENDPOINT}", *arguments]
        return run(netns.inside(self.ns, command), stdin=stdin).stdout

    def leases(self) -> dict[Network, dict[str, Any]]:
        """Return every lease below `<prefix>/subnets/`: each of its subnets -> decoded JSON value."""
        answer = json.loads(self.ctl("get", "--prefix", f"{self.prefix}/subnets/", "--write-out=json"))
        found: dict[Network, dict[str, Any]] = {}
        for pair in answer.get("kvs", []):
            key = b64decode(pair["key"]).decode().rpartition("/")[2]
            for subnet in key.removeprefix("0.0.0.0-0&").split("&"):
                found[ip_network("/".join(subnet.rsplit("-", 1)))] = json.loads(b64decode(pair["value"]))
        return found


def _listens(process: Process, port: int) -> bool:
    """Whether a TCP socket listens on `port` in the namespace of `process` (proc(5): 0A is LISTEN)."""
    try:
        lines = Path(f"/proc/{process.pid}/net/tcp").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError):
        return False
    sockets = [line.split() for line in lines]
    return any(one[1].endswith(f":{port:04X}") and one[3] == "0A" for one in sockets)
