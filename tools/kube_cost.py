#!/usr/bin/env python3
"""What a daemon with --kube-subnet-mgr takes in a large cluster: memory, and CPU under the kubelets' writes.

For each of `--nodes` a lab with the real API server, one node that runs the daemon, and so many node objects
of a real one's size (50 images, 18 kB). Every kubelet writes its node's status once in five minutes, so 5,000
nodes are 17 writes a second, none of which changes anything for us.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, LabSpec, Node, netns
from flannel_ebpf.lab.kube_server import PORT
from flannel_ebpf.lab.spec import ETCD_IP

NETWORK = "10.0.0.0/8"
STATUS_PERIOD = 300.0
"""Seconds between the writes of a kubelet to its node (nodeStatusReportFrequency)."""
DEADLINE = 300.0
PREFIX = "flannel.alpha.coreos.com/"


def name_of(number: int) -> str:
    """Return the name of a node that does not exist."""
    return f"node-{number:05d}"


def object_of(number: int) -> dict[str, Any]:
    """Return a node object as a kubelet, the controller manager and flannel make it together."""
    high, low = divmod(number, 256)
    data = {"VNI": 1, "VtepMAC": f"02:00:00:01:{high:02x}:{low:02x}"}
    notes = {
        f"{PREFIX}kube-subnet-manager": "true",
        f"{PREFIX}backend-type": "vxlan",
        f"{PREFIX}public-ip": f"192.168.{65 + high}.{low}",
        f"{PREFIX}backend-data": json.dumps(data, separators=(",", ":")),
        "volumes.kubernetes.io/controller-managed-attach-detach": "true",
    }
    place = "registry.example.org/some/long/path/image"
    images = [
        {"names": [f"{place}-{at}@sha256:{at:064x}", f"{place}-{at}:v1.2.{at}"], "sizeBytes": 123456789 + at}
        for at in range(50)
    ]
    labels = {f"example.org/label-{at}": f"value-{at}" for at in range(20)}
    cidr = f"10.{128 + high}.{low}.0/24"
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name_of(number), "labels": labels, "annotations": notes},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]},
        "status": {"images": images, "conditions": [ready_at(0)]},
    }


def ready_at(seconds: float) -> dict[str, str]:
    """Return the condition that a kubelet writes."""
    text = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
    return {"type": "Ready", "status": "True", "lastHeartbeatTime": text}


class Api:
    """One connection to the lab's API server; made and used inside its namespace."""

    def __init__(self, lab: Lab) -> None:
        context = ssl.create_default_context(cafile=str(lab.kube.certificate))
        self._http = http.client.HTTPSConnection(str(ETCD_IP), PORT, context=context)
        netns.call_inside(lab.kube.ns, self._http.connect)

    def send(self, method: str, path: str, body: Any, kind: str = "application/json") -> None:
        """Send one request; SystemExit with the server's words when it is refused."""
        headers = {"Authorization": "Bearer admin", "Content-Type": kind}
        self._http.request(method, path, json.dumps(body), headers)
        answer = self._http.getresponse()
        text = answer.read()
        if answer.status not in (200, 201):
            raise SystemExit(f"{method} {path}: {answer.status} {text.decode()[:300]}")


def fill(lab: Lab, numbers: range) -> None:
    """Make the node objects."""

    def some(part: Iterable[int]) -> None:
        api = Api(lab)
        for number in part:
            api.send("POST", "/api/v1/nodes", object_of(number))
            if number % 1000 == 999:
                print(f"kube_cost: {number + 1} of {len(numbers)} nodes made", file=sys.stderr, flush=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(some, (numbers[at::4] for at in range(4))))


def write_statuses(lab: Lab, count: int, seconds: float) -> int:
    """Write as the kubelets of `count` nodes do for so long; return how many writes that were."""
    api, begun, written = Api(lab), time.monotonic(), 0
    while (now := time.monotonic() - begun) < seconds:
        if written >= now * count / STATUS_PERIOD:
            time.sleep(0.005)
            continue
        path = f"/api/v1/nodes/{name_of(written % count)}/status"
        body = {"status": {"conditions": [ready_at(time.time())]}}
        api.send("PATCH", path, body, "application/strategic-merge-patch+json")
        written += 1
    return written


def memory(node: Node, key: str = "VmRSS") -> float:
    """Return the daemon's resident memory in MB, `VmHWM`: what it was at most."""
    text = Path(f"/proc/{pid_of(node)}/status").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines())
    return int(fields[key].split()[0]) * 1024 / 1e6


def cpu(node: Node) -> float:
    """Return the seconds of CPU that the daemon has used."""
    fields = Path(f"/proc/{pid_of(node)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pid_of(node: Node) -> int:
    """Return the daemon's process."""
    daemon = node.daemon
    if daemon is None:
        raise SystemExit(node.log_tail())
    return daemon.pid


def wait(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    since = time.monotonic()
    while not condition():
        if time.monotonic() - since > DEADLINE:
            raise SystemExit(f"not within {DEADLINE:.0f} s: {what}")
        time.sleep(0.2)


def peers_of(node: Node) -> int:
    """Return how many peers the node has; with programs routes may come on demand, so their map tells."""
    if not list(node.pin_root.rglob("fl_peers")):
        return node.run(["ip", "route", "show", "dev", "flannel.1"]).stdout.count("\n")
    with Map.open(node.map_path("fl_peers")) as peers:
        return len(peers.items())


def measure(apiserver: str, count: int, datapath: str, seconds: float) -> str:
    """Build a lab; return its row."""
    spec = LabSpec(
        name=f"kcost{os.getpid()}", network=NETWORK, datapath=datapath, nodes=1, pods_per_node=1,
        kube_apiserver=apiserver,
    )  # fmt: skip
    with Lab.up(spec) as lab:
        node = lab.node("n1")
        node.stop_daemon()
        alone = started(node, 0)
        fill(lab, range(count))
        node.stop_daemon()
        begun = time.monotonic()
        at_start = started(node, count)
        took = time.monotonic() - begun
        used, peak = cpu(node), memory(node, "VmHWM")
        time.sleep(10)  # the passes that a start leads to
        idle = share(node, lambda: time.sleep(seconds), seconds)
        written: list[int] = []
        writer = threading.Thread(target=lambda: written.append(write_statuses(lab, count, seconds)))
        writer.start()
        busy = share(node, writer.join, seconds)
        rate = written[0] / seconds
        after = memory(node)
    return (
        f"| {count:,} | {alone:.1f} MB | {at_start:.1f} MB, {at_start - alone:+.1f} | {peak:.1f} MB "
        f"| {after:.1f} MB | {took:.1f} s, {used:.1f} s | {idle:.2%} | {rate:.1f}/s: {busy:.2%} |"
    )


def started(node: Node, peers: int) -> float:
    """Start the daemon; return its memory once it has all peers."""
    node.log.unlink(missing_ok=True)
    node.start_daemon()
    wait(lambda: "ready:" in node.daemon_log() and peers_of(node) >= peers, f"{peers} peers")
    return memory(node)


def share(node: Node, meanwhile: Callable[[], object], seconds: float) -> float:
    """Return the share of a core that the daemon uses meanwhile."""
    before = cpu(node)
    meanwhile()
    return (cpu(node) - before) / seconds


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", "-n", type=int, nargs="+", default=[1000, 5000], help="other nodes")
    parser.add_argument("--datapath", default="ebpf", help="the daemon's (default ebpf)")
    parser.add_argument("--seconds", type=float, default=60.0, help="to measure CPU for (default 60)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the lab is taken down, as after Ctrl-C
    build = Path(__file__).parent / "kube" / "build.sh"
    folder = subprocess.run([build], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    print(
        "| nodes | memory, alone | with all listed | peak | after the writes | start: until ready, CPU "
        "| CPU at rest | CPU under the kubelets' writes |"
    )
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for count in options.nodes:
        print(measure(f"{folder}/kube-apiserver", count, options.datapath, options.seconds), flush=True)


if __name__ == "__main__":
    main()
