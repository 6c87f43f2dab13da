"""The udp backend's relay beside BPF programs: crashes, restarts, outages, removal, and how it is chosen."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.processes import Process, spawn
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from flannel_ebpf.relay import counters
from tests.netns.kinds import Pair, both
from tests.netns.kinds import long_tcp as tcp
from tests.netns.labs import MakeLab
from tests.netns.life import chat, flannel, ready, restart, stream
from tests.netns.traffic import ping
from tests.polls import eventually


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    made = make_shared_lab(backend="udp", datapath="ebpf", pods_per_node=1)
    eventually(lambda: programs_announced(made) == 2, "both nodes say that they have programs")
    return made


def programs_announced(lab: Lab) -> int:
    return sum(lease.get("BackendData") == {"Datapath": "bpf"} for lease in lab.leases().values())


def pair_of(lab: Lab) -> Pair:
    return Pair(lab, lab.node("n1"), lab.node("n2"))


def relay_pid(node: Node) -> int:
    return counters.read(node.state_dir / "relay-flannel0" / "counters")[0]


def test_an_accelerated_flow_does_not_notice_that_the_relay_crashes(lab: Lab) -> None:
    pair, node = pair_of(lab), lab.node("n1")
    mark, old = len(node.daemon_log()), relay_pid(node)
    with both(pair) as seen, stream(pair.client, pair.server) as delivery:
        os.kill(old, signal.SIGKILL)
        eventually(lambda: f"relay {old} ended" in node.daemon_log()[mark:], "the crash is said")
        eventually(lambda: "8285 restarted" in node.daemon_log()[mark:], "the relay is back")
    assert delivery.lost == 0
    assert seen[0].path == seen[1].path == "BPF"
    assert relay_pid(node) not in (0, old)
    assert ping(pair.client, pair.server.ip, 3) == 3


def test_the_relay_outlives_a_killed_daemon_and_is_adopted(lab: Lab) -> None:
    pair, node = pair_of(lab), lab.node("n1")
    pid = relay_pid(node)
    with stream(pair.client, pair.server) as delivery, chat(pair.client, pair.server):
        said = restart(node, kill=True)
    assert delivery.lost == 0
    assert relay_pid(node) == pid
    assert "8285 adopted" in said
    assert f"relay     running, process {pid}: " in flannel(node, "status")
    assert programs_announced(lab) == 2


def test_a_node_without_programs_for_a_while_is_sent_what_its_relay_can_take(lab: Lab) -> None:
    pair, node = pair_of(lab), lab.node("n2")
    restart(node, "--datapath=kernel")
    eventually(lambda: programs_announced(lab) == 1, "the lease says it")
    assert [seen.path for seen in tcp(pair)][1] == "kernel"
    restart(node)
    lab.wait_attached([node])
    eventually(lambda: programs_announced(lab) == 2, "the lease says it")
    assert [seen.path for seen in tcp(pair)] == ["BPF", "BPF"]


def test_everything_goes_on_without_etcd(lab: Lab) -> None:
    pair, node = pair_of(lab), lab.node("n1")
    etcd = lab.etcd.process
    assert etcd
    etcd.signal(signal.SIGKILL)
    etcd.wait(30)
    try:
        pid = relay_pid(node)
        mark = len(node.daemon_log())
        os.kill(pid, signal.SIGKILL)
        eventually(lambda: "8285 restarted" in node.daemon_log()[mark:], "the relay is back")
        eventually(lambda: [seen.path for seen in tcp(pair)] == ["BPF", "BPF"], "so are the programs", 30)
    finally:
        lab.etcd.start()


def test_down_leaves_port_and_device_to_flanneld(make_lab: MakeLab) -> None:
    lab = make_lab(backend="udp", datapath="ebpf", pods_per_node=1)
    eventually(lambda: programs_announced(lab) == 2, "both nodes say that they have programs")
    pair, node = pair_of(lab), lab.node("n2")
    pid = relay_pid(node)
    assert "the relay has ended" in flannel(node, "down")
    assert Process.of(pid) is None
    assert node.run(["ip", "link", "show", "flannel0"], check=False).returncode != 0
    assert node.run(["ss", "-Hlun", "sport = :8285"]).stdout == ""
    assert programs_announced(lab) == 1
    node.start_daemon()
    lab.wait_ready()
    assert all(seen.path for seen in tcp(pair))
    flannel(node, "down", "--purge")
    assert not (node.state_dir / "relay-flannel0").exists()


@pytest.mark.parametrize("choice", ["count", "off"])
def test_the_source_check_reaches_the_relay(make_lab: MakeLab, choice: str) -> None:
    lab = make_lab(
        backend="udp",
        datapath="kernel",
        pods_per_node=1,
        nodes=2,
        extra_up_args=(f"--source-check={choice}",),
    )
    pair = pair_of(lab)
    pair.sender.run(["ip", "address", "add", "192.168.64.77/24", "dev", "eth0"])
    rule = "POSTROUTING -p udp --sport 8285 -j SNAT --to-source 192.168.64.77:8285"  # it holds no lease
    pair.sender.run(["iptables", "-w", "-t", "nat", "-A", *rule.split()])
    pair.sender.run(["conntrack", "-F"], check=False)
    pair.client.run(["ping", "-c3", "-i0.1", "-W1", str(pair.server.ip)], check=False)
    status = counters.read(pair.receiver.state_dir / "relay-flannel0" / "counters")[1]
    assert status["rx_delivered"] >= 3
    assert (status["rx_not_member"] >= 3) == (choice == "count")


WITHOUT_VXLAN = """
import sys
from pathlib import Path
from flannel_ebpf.kernel.netlink import vxlan
create, flag = vxlan._create, Path(sys.argv.pop())
def create_or_not(ip, want):
    if flag.exists():
        ip.link("add", ifname=want.name, kind="missing")
    create(ip, want)
vxlan._create = create_or_not
from flannel_ebpf.cli import main
main()
"""
"""The daemon on a kernel that knows no vxlan: it asks for a kind of device that really is not there."""


def test_without_vxlan_the_log_says_what_to_do_and_the_daemon_keeps_trying(
    make_lab: MakeLab, tmp_path: Path
) -> None:
    lab = make_lab(nodes=1, datapath="auto", pods_per_node=0, start_daemons=False)
    node, flag = lab.node("n1"), tmp_path / "no-vxlan"
    flag.touch()
    command = node.daemon_command()
    assert command[:4] == [sys.executable, "-m", "flannel_ebpf", "up"]
    line = [sys.executable, "-c", WITHOUT_VXLAN, *command[3:], str(flag)]
    spawn(node.ns, line, log=node.log, pidfile=node.pidfile)
    eventually(lambda: "the udp backend needs no such device" in node.daemon_log(), "the advice", 30)
    time.sleep(1.5)  # several more tries
    said = [line for line in node.daemon_log().splitlines() if "WARN" in line or line.startswith("W")]
    assert len(said) == 1, node.daemon_log()
    assert "Operation not supported" in said[0]
    found = re.search(r"flannel-ebpf config set '(.*?)'", said[0])
    assert found
    config = json.loads(found[1])
    assert config["Backend"] == {"Type": "udp"}
    endpoint = f"--etcd-endpoints={ETCD_ENDPOINT}"
    node.run([sys.executable, "-m", "flannel_ebpf", "config", "set", endpoint, found[1]])
    flag.unlink()
    ready(node)
    assert node.run(["ip", "link", "show", "flannel.1"]).returncode == 0
    restart(node)
    assert "flannel0" in node.run(["ip", "route"]).stdout
