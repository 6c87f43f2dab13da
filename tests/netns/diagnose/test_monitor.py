"""`monitor` tells of real packets while it runs, and leaves programs without a trace of it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node, netns
from tests.netns.diagnose.commands import ours
from tests.netns.labs import MakeLab
from tests.polls import eventually

TELLS = "map_push"
"""What a program that tells calls, in bpftool's words."""


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    made = make_shared_lab(nodes=2, datapath="ebpf", pods_per_node=1)
    one, other = made.pods
    one.popen(["ping", "-q", "-i", "0.05", "-w", "600", str(other.ip)])
    return made


def instructions(node: Node) -> str:
    program = node.map_path("fl_from_pod")
    dump = ["bpftool", "prog", "dump", "xlated", "pinned", str(program)]
    return subprocess.run(dump, capture_output=True, text=True, check=True).stdout


def told(node: Node, *flags: str) -> list[dict[str, object]]:
    done = ours(node, "monitor", "--json", "--seconds=60", *flags)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_packets_come_with_addresses_and_reasons(lab: Lab) -> None:
    one, other = lab.pods
    found = told(lab.node("n1"), "--count=12", f"--address={other.ip}")
    assert {(line["source"], line["target"]) for line in found} == {
        (str(one.ip), str(other.ip)),
        (str(other.ip), str(one.ip)),
    }
    assert {line["hook"] for line in found} <= {"from_pod", "to_peer", "from_peer", "to_pod"}
    incoming = [line for line in found if line["hook"] == "from_peer"]
    via = {line["outer"] for line in incoming}
    assert str(lab.node("n2").ip) in via
    assert via <= {str(lab.node("n2").ip), ""}, "what comes out of the overlay device has no tunnel any more"
    assert {(line["source_port"], line["target_port"]) for line in found} == {(0, 0)}


def test_filters_by_reason_and_port(lab: Lab) -> None:
    fast = told(lab.node("n1"), "--count=3", "--reason=fast")
    assert {line["reason"] for line in fast} == {"fast_vxlan"}
    one, other = lab.pods
    other.popen(["iperf3", "-s", "-1"])
    eventually(lambda: ":5201" in other.run(["ss", "-ltn"]).stdout, "iperf3 listens")
    one.popen(["iperf3", "-c", str(other.ip), "-t", "60", "-b", "1M"])
    (line,) = told(lab.node("n1"), "--count=1", "--port=5201")
    assert 5201 in (line["source_port"], line["target_port"])


def test_what_the_kernel_drops_is_told_with_its_reason(lab: Lab) -> None:
    node, (one, other) = lab.node("n1"), lab.pods
    node.run(["iptables", "-I", "FORWARD", "-p", "udp", "-d", str(other.ip), "--dport", "7777", "-j", "DROP"])
    one.popen(["bash", "-c", f"for n in {{1..600}}; do echo x > /dev/udp/{other.ip}/7777; sleep 0.1; done"])
    (line,) = told(node, "--count=1", "--port=7777", "--reason=netfilter")
    assert (line["hook"], line["reason"], line["source"]) == ("kernel", "netfilter_drop", str(one.ip))
    assert line["function"]
    assert not list(node.pin_root.glob("watch-*"))


def test_without_the_kernels_drops(lab: Lab) -> None:
    found = told(lab.node("n1"), "--count=5", "--no-kernel-drops")
    assert "kernel" not in {line["hook"] for line in found}


def test_when_nobody_watches_the_programs_hold_no_trace_of_it(lab: Lab) -> None:
    node = lab.node("n1")
    eventually(lambda: TELLS not in instructions(node), "an earlier watcher is forgotten", 30)
    command = [sys.executable, "-m", "flannel_ebpf", "monitor", "--sample=1000000"]
    told_to = [f"{name}={value}" for name, value in node.variables.items()]
    watcher = subprocess.Popen(netns.inside(node.ns, ["env", *told_to, *command]), stdout=subprocess.DEVNULL)
    eventually(lambda: TELLS in instructions(node), "programs that tell are loaded", 30)
    watcher.send_signal(signal.SIGINT)
    assert watcher.wait(120) == 130
    eventually(lambda: TELLS not in instructions(node), "programs that do not are back", 30)
    with Map.open(node.map_path("fl_events")) as queue:
        while queue.pop() is not None:
            pass  # what came before they were back
        lab.pods[0].run(["ping", "-q", "-c", "5", "-i", "0.05", str(lab.pods[1].ip)])
        assert queue.pop() is None


def test_without_a_daemon_the_status_is_3(lab: Lab) -> None:
    node = lab.node("n2")
    node.stop_daemon()
    done = ours(node, "monitor", "--count=1")
    assert (done.returncode, done.stdout) == (3, "")
    assert "no daemon runs" in done.stderr


@pytest.mark.parametrize("flags", [["--reason=nonsense"], ["--port=0"], ["--sample=0"], ["--address=x"]])
def test_bad_input(lab: Lab, flags: list[str]) -> None:
    done = ours(lab.node("n1"), "monitor", *flags)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
