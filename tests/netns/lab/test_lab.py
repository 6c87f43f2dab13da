from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab import Lab, LabSpec, netns, teardown
from flannel_ebpf.lab.cluster import labs
from flannel_ebpf.lab.drawing import draw
from flannel_ebpf.lab.processes import Process
from flannel_ebpf.lab.spec import folder_of, owns_namespace
from flannel_ebpf.lab.stock import StockFlannel
from tests.netns.labs import MakeLab
from tests.polls import eventually

CLI = [sys.executable, "-m", "flannel_ebpf", "lab"]


def leftovers(name: str) -> list[str]:
    """What is left of a lab: namespaces, folder, mounts, processes that mention its folder."""
    folder = str(folder_of(name))
    found = [ns for ns in netns.names() if owns_namespace(name, ns)]
    found += [folder] if Path(folder).exists() else []
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if f"{folder}/" in line]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes().replace(b"\0", b" ").decode()
        except (FileNotFoundError, ProcessLookupError):
            continue
        found += [command] if f"{folder}/" in command else []
    return found


def stock_pair(lab: Lab) -> None:
    """Two nodes as stock flanneld would leave them, with pods."""
    flannels = [
        StockFlannel(lab, node, IPv4Network(f"10.1.{number}.0/24"))
        for number, node in enumerate(lab.nodes, 1)
    ]
    for flannel in flannels:
        flannel.start()
    for flannel in flannels:
        flannel.sync()
    lab.add_pods()


def ping(lab: Lab, source: str, target: str) -> bool:
    command = ["ping", "-c1", "-W10", str(lab.pod(target).ip)]
    return lab.pod(source).run(command, check=False).returncode == 0


def test_down_leaves_nothing_and_may_be_repeated(lab_name: str) -> None:
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    lab = Lab.up(LabSpec(name=lab_name, start_daemons=False))
    assert {f"{lab_name}-{part}" for part in ("sw", "n1", "n2")} <= set(netns.names())
    assert leftovers(lab_name)
    held = lab.node("n1").popen(["sleep", "1000"])
    lab.down()
    assert leftovers(lab_name) == []
    assert held.wait(5) != 0
    assert links == subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    lab.down()
    assert teardown.remove(lab_name) is False


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
def test_pods_talk_between_stock_nodes(make_lab: MakeLab, backend: str) -> None:
    lab = make_lab(backend=backend, start_daemons=False)
    stock_pair(lab)
    assert ping(lab, "n1p1", "n2p2")
    assert ping(lab, "n1p1", "n1p2")
    lab.node("n1").run(["ip", "route", "delete", "10.1.2.0/24"])
    assert not ping(lab, "n1p1", "n2p2")


def test_a_stock_lease_is_flannels_byte_for_byte(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, start_daemons=False)
    flannel = StockFlannel(lab, lab.node("n1"), IPv4Network("10.1.5.0/24"))
    flannel.start()
    value = lab.etcdctl("get", "--print-value-only", "/coreos.com/network/subnets/10.1.5.0-24").strip()
    assert value == (
        '{"PublicIP":"192.168.64.1","PublicIPv6":null,"BackendType":"vxlan",'
        f'"BackendData":{{"VNI":1,"VtepMAC":"{flannel.mac}"}}}}'
    )
    key = json.loads(lab.etcdctl("get", "--write-out=json", "/coreos.com/network/subnets/10.1.5.0-24"))[
        "kvs"
    ][0]
    assert key["lease"] != 0


def test_two_labs_with_the_same_addresses_do_not_meet(make_lab: MakeLab) -> None:
    first, second = make_lab(start_daemons=False), make_lab(start_daemons=False)
    stock_pair(first)
    assert second.leases() == {}
    first.down()
    assert second.etcd.process is not None


def test_a_name_is_taken_once(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, start_daemons=False)
    with pytest.raises(LabError, match=r"there already.*lab down --name"):
        Lab.up(LabSpec(name=lab.spec.name))
    assert lab.etcd.process is not None  # the refusal took nothing down


def test_another_process_sees_the_same_lab(make_lab: MakeLab) -> None:
    lab = make_lab(start_daemons=False)
    stock_pair(lab)
    again = Lab.open(lab.spec.name)
    assert [pod.name for pod in again.pods] == ["n1p1", "n1p2", "n2p1", "n2p2"]
    assert again.etcd.process == lab.etcd.process
    assert draw(again) == draw(lab)
    name = ["--name", lab.spec.name]
    status = subprocess.run([*CLI, "status", *name], capture_output=True, text=True, check=True).stdout
    assert "10.1.2.3" in status
    assert status.count("NOT RUNNING") == 2  # both daemons, not etcd
    inside = subprocess.run(
        [*CLI, "exec", *name, "n2p1", "--", "ip", "-4", "addr"], capture_output=True, text=True, check=True
    )
    assert "10.1.2.2/24" in inside.stdout
    assert subprocess.run([*CLI, "exec", *name, "n1", "false"], check=False).returncode == 1


def test_an_unknown_lab_or_host_is_named(make_lab: MakeLab) -> None:
    with pytest.raises(LabError, match="no lab called nowhere is up"):
        Lab.open("nowhere")
    lab = make_lab(nodes=1, start_daemons=False)
    with pytest.raises(LabError, match="no 'n7': it has n1"):
        lab.host("n7")


def test_a_pod_address_is_free_again_at_once(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, start_daemons=False)
    StockFlannel(lab, lab.node("n1"), IPv4Network("10.1.1.0/24")).start()
    node = lab.node("n1")
    first, second = node.add_pod(), node.add_pod()
    assert [str(first.ip), str(second.ip)] == ["10.1.1.2", "10.1.1.3"]
    node.remove_pod(first)
    third = node.add_pod()
    assert third.ip == first.ip
    assert third.name == "n1p3"
    assert ping(lab, "n1p3", "n1p2")
    with pytest.raises(LabError, match="taken"):
        node.add_pod(ip=second.ip)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("delay", [0.3, 0.6, 0.9])
def test_an_interrupted_up_leaves_nothing(lab_name: str, number: int, delay: float) -> None:
    up = subprocess.Popen([*CLI, "up", "--name", lab_name, "--nodes", "4"], stdout=subprocess.DEVNULL)
    time.sleep(delay)  # not waited for: the moment of the interrupt is what varies
    up.send_signal(number)
    assert up.wait(60) != 0
    assert leftovers(lab_name) == []


def test_what_a_killed_up_left_is_removed(lab_name: str) -> None:
    up = subprocess.Popen([*CLI, "up", "--name", lab_name, "--nodes", "3"], stdout=subprocess.DEVNULL)
    eventually(lambda: f"{lab_name}-n2" in netns.names(), "a node of the lab is there")
    up.kill()
    up.wait()
    assert lab_name in labs()
    down = subprocess.run([*CLI, "down", "--name", lab_name], capture_output=True, text=True, check=True)
    assert "removed" in down.stdout
    assert leftovers(lab_name) == []


OF_THIS_RUN = {name for name in os.environ if name.startswith(("FLANNEL_TEST_RUN", "PYTEST_"))}


@pytest.mark.parametrize(
    ("number", "options", "worker"),
    [(signal.SIGINT, (), ""), (signal.SIGTERM, (), ""), (signal.SIGINT, ("-n", "1"), "gw0")],
    ids=["interrupted", "terminated", "parallel"],
)
def test_an_interrupted_test_run_leaves_nothing(number: int, options: tuple[str, ...], worker: str) -> None:
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", *options, f"{__file__}::test_pods_talk_between_stock_nodes"],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in OF_THIS_RUN},
    )
    name = f"t{run.pid}{worker}-1"
    eventually(lambda: f"{name}-n1p1" in netns.names(), "a pod of the run's lab is there", 20)
    for _ in range(3):  # once may be enough for the run, not for an impatient person
        run.send_signal(number)
    said = run.communicate(timeout=120)[0]
    assert run.returncode != 0, said
    assert leftovers(name) == []


def test_a_daemon_that_ends_is_reported_with_its_log(lab_name: str) -> None:
    with pytest.raises(LabError, match=r"(?s)n1 .*daemon has ended.*no-such-flag"):
        Lab.up(LabSpec(name=lab_name, extra_up_args=("--no-such-flag",)))
    assert leftovers(lab_name) == []


def test_a_reused_pid_is_another_process() -> None:
    own = Process.of(os.getpid())
    assert own is not None
    assert own.alive
    stranger = Process(own.pid, own.started - 1)
    assert not stranger.alive
    stranger.signal(signal.SIGKILL)  # would end this test run if it were taken for the real one


def test_a_command_for_a_namespace_that_is_gone_ends_at_once(make_lab: MakeLab) -> None:
    node = make_lab(nodes=1, start_daemons=False).node("n1")
    netns.delete([node.ns])
    assert node.popen(["sleep", "1000"]).wait(5) != 0
    with pytest.raises(LabError, match="No such file"):
        node.run(["true"])
