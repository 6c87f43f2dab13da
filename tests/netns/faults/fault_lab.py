"""Whole nodes on an etcd that tests can hurt, and a ping between pods that counts every loss meanwhile."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Network
from itertools import count
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.contract.abi import SubnetKey
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node, Pod
from flannel_ebpf.lab.spec import ETCD_IP
from tests.netns.etcd_cluster import Certs, EtcdCluster, Member
from tests.netns.labs import MakeLab
from tests.polls import eventually

log = logging.getLogger("figures")

PREFIX = "/coreos.com/network"
RATE = 100
"""Echo requests a second."""

_PING = """
import json, os, select, signal, socket, struct, sys, time
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.connect((sys.argv[1], 0))
interval, mark = 1 / int(sys.argv[2]), os.getpid() & 0xffff
going, sent, back, last, gap = True, 0, set(), 0, 0.0
def end(*_):
    global going, until
    going, until = False, time.monotonic() + 5
def echo(number):
    body = struct.pack("!BBHHHI", 8, 0, 0, mark, number & 0xffff, number)
    total = sum(struct.unpack("!6H", body))
    total = (total & 0xffff) + (total >> 16)
    total = (total & 0xffff) + (total >> 16)
    return body[:2] + struct.pack("!H", ~total & 0xffff) + body[4:]
signal.signal(signal.SIGTERM, end)
start, until, ready = time.monotonic(), 0.0, False
while going or (len(back) < sent and time.monotonic() < until):
    if going and time.monotonic() >= start + sent * interval:
        try:
            sock.send(echo(sent))
        except OSError:
            pass
        sent += 1
    wait = start + sent * interval - time.monotonic() if going else 0.1
    if select.select([sock], [], [], max(0, wait))[0]:
        packet = sock.recv(2048)
        packet = packet[(packet[0] & 15) * 4:]
        if packet[0] == 0 and struct.unpack("!H", packet[4:6])[0] == mark and len(packet) == 12:
            now = time.monotonic()
            gap, last = max(gap, now - (last or now)), now
            back.add(struct.unpack("!I", packet[8:])[0])
            if len(back) > 20 and not ready:  # the flow is admitted before anything is done to it
                ready = not print("ready", flush=True)
print(json.dumps({"sent": sent, "lost": sent - len(back), "gap": gap}), flush=True)
"""


@dataclass
class Ping:
    """What became of the echo requests: sent, unanswered, and the longest silence in seconds."""

    sent: int = 0
    lost: int = 0
    gap: float = 0.0


@contextmanager
def pinging(source: Pod, target: Pod) -> Iterator[Ping]:
    """Ping at RATE during the block; the result is filled in at its end."""
    result = Ping()
    process = source.popen([sys.executable, "-IS", "-c", _PING, str(target.ip), str(RATE)])
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()[0]
    try:
        yield result
    finally:
        process.send_signal(signal.SIGTERM)
        said = json.loads(process.communicate(timeout=60)[0])
    result.sent, result.lost, result.gap = said["sent"], said["lost"], said["gap"]


def cpu_seconds(node: Node) -> float:
    """Return the CPU time that the node's daemon has used, all threads together."""
    assert node.daemon, node.log_tail()
    fields = Path(f"/proc/{node.daemon.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@dataclass
class Fault:
    """One fault: how long until a new lease was programmed everywhere, and what it cost."""

    name: str
    recovery: float = 0.0
    lost: int = 0
    cpu: float = 0.0
    """Part of one CPU that the busier daemon used while it lasted."""


class FaultLab:
    """Nodes n1, n2 ... with a pod each, whose daemons use `cluster` in the lab's switch namespace.

    They draw subnets below 10.1.100.0; those above are the tests' to place.
    """

    def __init__(self, lab: Lab, cluster: EtcdCluster, args: tuple[str, ...], nodes: int) -> None:
        self.lab, self.cluster, self.args = lab, cluster, args
        self.spares = lab.nodes[nodes:]
        del lab.nodes[nodes:]  # the lab need not wait for them
        self.nodes = lab.nodes
        self._numbers = count(200)
        self._marks = dict.fromkeys((node.name for node in lab.nodes), 0)

    def start(self) -> None:
        """Start every daemon that does not run and wait until the pods can talk."""
        marks = {node: len(node.daemon_log()) for node in self.nodes if not node.daemon}
        for node in marks:
            node.start_daemon(self.args)
        self.lab.wait_ready()
        for node, mark in marks.items():
            eventually(lambda: "ready:" in node.daemon_log()[mark:], f"{node.name} ready", 10)  # noqa: B023 - called here
        for node in self.nodes:
            if not node.pods:
                node.add_pod()
        self.lab.wait_attached()

    def config(self) -> str:
        return json.dumps({**json.loads(self.lab.spec.config_json()), "SubnetMax": "10.1.99.0"})

    def key(self, node: Node) -> str:
        return f"{PREFIX}/subnets/{node.subnet.network_address}-{node.subnet.prefixlen}"

    def value(self, node: Node) -> dict[str, Any]:
        """Return what etcd holds under the node's key, {} when there is nothing."""
        text = self.cluster.ctl("get", "--print-value-only", self.key(node))
        found: dict[str, Any] = json.loads(text) if text.strip() else {}
        return found

    def used_by(self, node: Node) -> Member:
        """Return the member that the node's daemon watches."""
        target = node.daemon_log().rpartition("watching etcd at ")[2].split()[0]
        return next(member for member in self.cluster.members if member.client_url.endswith(target))

    def put_peer(self, number: int) -> IPv4Network:
        """Write the lease of a node that does not exist, over and over until etcd takes it."""
        key = f"{PREFIX}/subnets/10.1.{number}.0-24"
        value = json.dumps(
            {
                "PublicIP": f"192.168.64.{number}",
                "PublicIPv6": None,
                "BackendType": "vxlan",
                "BackendData": {"VNI": 1, "VtepMAC": f"02:00:00:00:00:{number:02x}"},
            }
        )

        def written() -> bool:
            try:
                self.cluster.ctl("put", key, value)
            except AssertionError:
                return False
            return True

        eventually(written, f"etcd takes {key}", 30)
        return IPv4Network(f"10.1.{number}.0/24")

    def has_peer(self, node: Node, subnet: IPv4Network) -> bool:
        """Whether the node's programs know the peer, or without programs its routes."""
        if self.lab.spec.datapath == "kernel":
            return bool(node.run(["ip", "route", "show", str(subnet)]).stdout)
        try:
            path = node.map_path("fl_peers")
        except (LabError, FileNotFoundError):  # pins are being replaced
            return False
        with Map.open(path) as peers:
            return (
                peers.lookup(SubnetKey(len=subnet.prefixlen, addr=subnet.network_address).pack()) is not None
            )

    def recovery(self, since: float, within: float) -> float:
        """Write one more lease; return the seconds from `since` until every running node has it."""
        number = next(self._numbers)
        subnet = self.put_peer(number)
        for node in self.nodes:
            if node.daemon:
                eventually(partial(self.has_peer, node, subnet), f"{node.name} has {subnet}", within)
        took = time.monotonic() - since
        self.cluster.ctl("del", f"{PREFIX}/subnets/10.1.{number}.0-24")
        return took

    def said(self, node: Node, *texts: str, within: float = 10.0) -> None:
        """Wait until the node's daemon has logged each text in one line since the last fault began."""
        eventually(
            lambda: any(all(text in line for text in texts) for line in self.news(node).splitlines()),
            lambda: f"{node.name} says {texts}; it said:\n{self.news(node)}",
            within,
        )

    def news(self, node: Node) -> str:
        """Return what the daemon logged since the last fault began."""
        return node.daemon_log()[self._marks[node.name] :]

    @contextmanager
    def under(self, name: str, *, may_lose: bool = False) -> Iterator[Fault]:
        """Do a fault in the block with pods of n1 and n2 talking; at its end assert that nothing was lost.

        With `may_lose` some may be lost meanwhile; the test goes on to show that it is over.
        """
        fault = Fault(name)
        one, two = self.nodes[:2]
        self._marks = {node.name: len(node.daemon_log()) for node in self.nodes}
        begun, before = time.monotonic(), [cpu_seconds(one), cpu_seconds(two)]
        with pinging(one.pods[0], two.pods[0]) as ping:
            yield fault
        after = [cpu_seconds(one), cpu_seconds(two)]
        fault.cpu = max(b - a for a, b in zip(before, after, strict=True)) / (time.monotonic() - begun)
        fault.lost = ping.lost
        log.info(
            "fault: %s | %.2f s | %d of %d | %.1f %%",
            name,
            fault.recovery,
            ping.lost,
            ping.sent,
            fault.cpu * 100,
        )
        assert may_lose or ping.lost == 0, (name, ping)
        for node in self.nodes:
            assert "Traceback" not in node.daemon_log()


@contextmanager
def fault_lab(
    make_lab: MakeLab,
    folder: Path,
    *args: str,
    size: int = 1,
    certs: Certs | None = None,
    options: tuple[str, ...] = (),
    nodes: int = 2,
    spares: int = 0,
    **spec: Any,
) -> Iterator[FaultLab]:
    """A lab, an etcd of `size` members, `nodes` with daemons that run with `args`, and `spares` without."""
    lab = make_lab(start_daemons=False, **{"datapath": "ebpf", "nodes": nodes + spares, **spec})
    where = {"ns": lab.spec.switch_ns, "host": str(ETCD_IP)}
    with EtcdCluster(folder / "etcd", size, certs, options=options, **where) as cluster:
        args = (f"--etcd-endpoints={','.join(cluster.endpoints)}", *args)
        faults = FaultLab(lab, cluster, args, nodes)
        cluster.ctl("put", f"{PREFIX}/config", faults.config())
        faults.start()
        yield faults


def run_to_end(node: Node, arguments: tuple[str, ...], within: float) -> tuple[int, str]:
    """Run a daemon that is expected to end by itself; return its status and all that it said."""
    process = node.popen(node.daemon_command(arguments))
    try:
        said, _ = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still runs after {within} s:\n{process.communicate()[0]}") from None
    return process.returncode, said
