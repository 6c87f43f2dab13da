#!/usr/bin/env python3
"""Record what the commands for operators say in a cluster of three nodes, healthy and with faults, as text.

Writes docs/recordings.md. Exits with status 1 when a command does not say what its recording is there for.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from flannel_ebpf.base.errors import FlannelError, LabError
from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import Lab, LabSpec, Node, teardown
from flannel_ebpf.lab.command import run

NAME = "recordings"
PAGE = Path(__file__).parents[1] / "docs" / "recordings.md"
PATIENCE = 60.0
"""Seconds until a command must say what it is recorded for: traffic begins, flows are looked at anew."""

HEAD = """# What the commands say

Recorded by `tools/recordings.py` on node `n1` of a lab of three nodes with both families, whose pods talk by
TCP and ICMP. `?` is the exit status. On a terminal, tables have 80 columns, and `ok`, `problem` and the like
are coloured.
"""

_SLOW = "s to answer"
"""What doctor says of etcd on a machine that is busy with other work: nothing to be recorded."""

Planted = Callable[[Lab], Iterator[None]]


@dataclass(frozen=True, slots=True)
class Scene:
    """One recording: a command of n1, what is planted before it, and what its output must hold."""

    title: str
    command: str
    says: str
    planted: Planted | None = None


def _changed(node: str, make: str, mend: str) -> Planted:
    """Return a fault that a command on a node makes, and another mends."""

    def planted(lab: Lab) -> Iterator[None]:
        lab.node(node).run(make.split())
        yield
        lab.node(node).run(mend.split())

    return planted


def _small_way(lab: Lab) -> Iterator[None]:
    port = ["ip", "-n", lab.spec.switch_ns, "link", "set", "n3", "mtu"]
    run([*port, "1400"])
    yield
    run([*port, "1500"])


_PORT = "INPUT -p udp --dport 8472 -j DROP"
_CONCERNS = "FORWARD -p tcp --dport 9999 -j DROP"
_FORWARD = "sysctl -qw net.ipv4.ip_forward="
_MASQUERADE = "POSTROUTING -s 10.1.0.0/16 ! -o docker0 -j MASQUERADE"

SCENES = (
    Scene("A host in order", "doctor", "ok       counters"),
    Scene("All peers answer", "probe", "ok"),
    Scene("Packets as they pass", "monitor --count=16", "fast_vxlan"),
    Scene("Rates", "top --count=1", "bit/s"),
    Scene("Connections that BPF carries one by one, where a rule concerns the pods", "flows", ":5201",
          _changed("n1", f"iptables -I {_CONCERNS}", f"iptables -D {_CONCERNS}")),
    Scene("Peers", "peers", "vxlan"),
    Scene("Pods", "pods", "bpf"),
    Scene("Forwarding is off", "doctor", "ip_forward is 0", _changed("n1", _FORWARD + "0", _FORWARD + "1")),
    Scene("Docker masquerades between nodes", "doctor", "Docker masquerades",
          _changed("n1", f"iptables -t nat -I {_MASQUERADE}", f"iptables -t nat -D {_MASQUERADE}")),
    Scene("n2 filters the tunnel's port, of IPv4", "probe", "it does not hear us: UDP port 8472",
          _changed("n2", f"iptables -I {_PORT}", f"iptables -D {_PORT}")),
    Scene("The way to n3 carries 1400 bytes", "probe", "packets up to 13", _small_way),
    Scene("n3 is down", "probe", "its public address does not answer either",
          _changed("n3", "ip link set eth0 down", "ip link set eth0 up")),
    Scene("A rule drops packets", "monitor --count=2 --reason=netfilter", "netfilter_drop",
          _changed("n1", "iptables -I FORWARD -p icmp -j DROP", "iptables -D FORWARD -p icmp -j DROP")),
)  # fmt: skip


def main() -> int:
    """Record every scene and write the page; return the exit status."""
    parser = argparse.ArgumentParser(description="Record what doctor, probe, monitor, top and flows say.")
    parser.add_argument("--out", type=Path, default=PAGE, help="default: docs/recordings.md")
    chosen = parser.parse_args()
    teardown.remove(NAME)  # what an earlier run left that was killed
    try:
        with Lab.up(LabSpec(name=NAME, nodes=3, family="dual", datapath="ebpf", pods_per_node=1)) as lab:
            talk(lab)
            parts = [part for scene in SCENES for part in recorded(lab, scene)]
    except FlannelError as error:
        print(f"recordings: {error}", file=sys.stderr)
        return 1
    chosen.out.write_text("\n".join([HEAD, *parts]))
    print(f"{len(SCENES)} recordings are in {chosen.out}")
    return 0


def talk(lab: Lab) -> None:
    """Have n1's pod talk to the others for as long as the lab is there."""
    one, two, three = lab.pods
    two.popen(["iperf3", "--server"])
    one.popen(["ping", "-q", "-i", "0.2", str(three.ip)])
    one.popen(["ping", "-q", "-i", "0.2", str(two.at(Family.V6))])
    script = f"until iperf3 -c {two.ip} -b 20M -t 3600 --connect-timeout 1000; do sleep 0.2; done"
    one.popen(["sh", "-c", script])


def recorded(lab: Lab, scene: Scene) -> Sequence[str]:
    """Return a scene's lines; raises LabError when its command does not come to say what it should."""
    node = lab.node("n1")
    print(scene.title, flush=True)
    with contextmanager(scene.planted)(lab) if scene.planted else nullcontext():
        deadline = time.monotonic() + PATIENCE
        while scene.says not in (said := asked(node, scene)).replace("\n", " ") or _SLOW in said:
            if time.monotonic() > deadline:
                raise LabError(f"{scene.title}: `{scene.command}` does not say {scene.says!r}:\n{said}")
            time.sleep(0.2)
    return [f"## {scene.title}\n", *(f"    {line}".rstrip() for line in said.splitlines()), ""]


def asked(node: Node, scene: Scene) -> str:
    """Run a scene's command on `node` and return what a terminal would hold."""
    told = [f"{name}={value}" for name, value in node.variables.items()]
    command = ["env", *told, sys.executable, "-m", "flannel_ebpf", *shlex.split(scene.command)]
    done = node.run(command, check=False, timeout=120)
    said = filter(None, (done.stdout.rstrip(), done.stderr.rstrip()))
    return "\n".join([f"n1# flannel-ebpf {scene.command}", *said, f"?{done.returncode}"])


if __name__ == "__main__":
    sys.exit(main())
