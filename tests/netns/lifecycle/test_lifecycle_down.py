"""`down`: what it leaves, what it takes along, and that it works on whatever it finds."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from tests.netns.labs import MakeLab
from tests.netns.life import command, flannel, ready, restart, stream, tell
from tests.polls import eventually, unchanging

BE_LIBERAL = "net.netfilter.nf_conntrack_tcp_be_liberal"


def value(node: Node, sysctl: str) -> str:
    return node.run(["sysctl", "-n", sysctl]).stdout.strip()


def bpftool(*words: str) -> Any:
    done = subprocess.run(["bpftool", "-j", *words], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def pinned(node: Node) -> set[tuple[str, int]]:
    """Every map and program that the node has pinned, by kind and the kernel's id."""
    kinds = [("map" if "maps-" in str(path) else "prog", path) for path in node.pin_root.rglob("fl_*")]
    return {(kind, bpftool(kind, "show", "pinned", str(path))["id"]) for kind, path in kinds}


def alive() -> set[tuple[str, int]]:
    """Every map and program of the machine."""
    return {(kind, one["id"]) for kind in ("map", "prog") for one in bpftool(kind, "show")}


def everything(node: Node) -> dict[str, list[str]]:
    """What a node holds that a daemon could leak, sorted."""
    commands = {
        "links": "ip -br link | cut -d' ' -f1",
        "addresses": "ip -o address | grep -v ' fe80:'",
        "routes": "(ip -4 route show table all; ip -6 route show table all) | grep -v -e fe80: -e ff00:",
        "neighbours": "ip neigh show nud permanent",
        "FDB": "bridge fdb show | grep -v ' master '",
        "rules": "(iptables-save; ip6tables-save) | grep -e ^-A -e ^:FLANNEL",
        "nft": "nft list tables | grep flannel",
        "filters": "for d in $(ls /sys/class/net); do for way in ingress egress; do "
        "tc filter show dev $d $way; done; done",
        "qdiscs": "tc qdisc show | cut -d' ' -f-5",
        "conntrack": "sysctl --all --pattern nf_conntrack_tcp",
        "sockets": "ss -xlH src 'unix:@flannel*'; ss -ulnH",
        "pins": f"find {node.pin_root} 2>/dev/null",
        "files": f"find {node.state_dir} {node.subnet_file} 2>/dev/null",
    }
    return {
        name: sorted(node.run(["sh", "-c", command], check=False).stdout.splitlines())
        for name, command in commands.items()
    } | {"hooks": [str(hook) for hook in node.hooks()]}


def changes(before: dict[str, list[str]], after: dict[str, list[str]], *ignored: str) -> list[str]:
    """What is there only before (-) or only after (+), kind by kind."""
    found = []
    for kind in before.keys() - set(ignored):
        was, is_now = Counter(before[kind]), Counter(after[kind])
        found += [f"- {kind}: {line}" for line in (was - is_now).elements()]
        found += [f"+ {kind}: {line}" for line in (is_now - was).elements()]
    return found


@pytest.mark.parametrize(
    ("backend", "family", "arguments"),
    [
        ("vxlan", "4", ("--ip-masq", "--xdp=generic", "--ip-blackhole-route")),
        ("vxlan", "4", ("--attach=clsact",)),
        ("host-gw", "4", ("--ip-masq",)),
        ("udp", "4", ()),
        ("vxlan", "dual", ("--ip-masq", "--ip-blackhole-route")),
        ("host-gw", "dual", ("--ip-masq", "--ip-blackhole-route")),
    ],
)
def test_nothing_is_left_after_churn_and_purge(
    make_lab: MakeLab, backend: str, family: str, arguments: tuple[str, ...]
) -> None:
    lab = make_lab(backend=backend, family=family, datapath="ebpf", pods_per_node=0, start_daemons=False)
    node = lab.node("n1")
    node.run(
        ["iptables", "-A", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
    )  # loads conntrack
    node.state_dir.rmdir()
    node.pin_root.rmdir()
    before, mine = everything(node), node.pin_root.parent / "n1"
    for one in lab.nodes:
        one.start_daemon(arguments)
    lab.wait_ready()
    used: set[tuple[str, int]] = set()
    for _ in range(2):
        pod, peer = node.add_pod(), lab.node("n2").add_pod()
        lab.wait_attached()
        with stream(pod, peer) as delivery:
            pass
        assert delivery.lost == 0
        used |= pinned(node)
        node.remove_pod(pod)
        lab.node("n2").remove_pod(peer)
        restart(node, *arguments, kill=True)
    assert used <= alive()
    flannel(node, "down", "--purge")
    node.run(["ip", "link", "del", "cni0"])  # the container runtime's, as its veths were
    assert changes(before, everything(node)) == []
    assert not mine.exists()
    eventually(lambda: not used & alive(), "programs and maps are freed", 10.0)
    flannel(node, "down", "--purge")
    assert changes(before, everything(node)) == []


def test_down_leaves_the_kernel_path_and_may_be_repeated(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="ebpf", extra_up_args=("--ip-blackhole-route",))
    node = lab.node("n1")
    node.run(["sysctl", "-w", f"{BE_LIBERAL}=0"])
    eventually(lambda: value(node, BE_LIBERAL) == "1", "the daemon needs it")
    with stream(lab.pod("n1p1"), lab.pod("n2p1")) as delivery:
        flannel(node, "down")
        flannel(node, "down")
    assert delivery.lost == 0
    assert value(node, BE_LIBERAL) == "0"
    assert "blackhole" not in node.run(["ip", "route"]).stdout
    said = tell(node, "status").stdout
    assert "datapath  kernel: no program is attached since `down`" in said
    eventually(lambda: node.daemon is None, "the daemon has ended")
    assert not node.pin_root.exists()
    assert node.hooks() == []
    assert lab.pod("n1p1").run(["ping", "-c1", "-W10", str(lab.pod("n2p1").ip)]).returncode == 0
    node.start_daemon()
    ready(node)
    lab.wait_attached([node])


def test_a_purge_leaves_alone_what_flanneld_has_taken_over(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(datapath="kernel", pods_per_node=1)
    node, there = lab.node("n1"), str(lab.pod("n2p1").ip)
    with pretended_flanneld(node, tmp_path):
        assert "is a flanneld in this network namespace" in tell(node, "down", "--purge").stderr
        assert node.daemon is not None
        flannel(node, "down")
        assert "is a flanneld in this network namespace" in tell(node, "down", "--purge").stderr
    node.run(["touch", str(node.subnet_file)])
    assert "was written after this network was handed over" in tell(node, "down", "--purge").stderr
    node.run(["touch", "-d", "2020-01-01", str(node.subnet_file)])
    node.run(["ip", "route", "add", "10.1.222.0/24", "via", "10.1.222.0", "dev", "flannel.1", "onlink"])
    refused = tell(node, "down", "--purge")
    assert refused.returncode == 1
    assert "the route to 10.1.222.0/24 is not ours. Nothing was removed" in refused.stderr
    assert lab.pod("n1p1").run(["ping", "-c1", "-W2", there]).returncode == 0
    flannel(node, "down", "--purge", "--force")
    assert not any("flannel" in line for line in everything(node)["links"])


@contextmanager
def pretended_flanneld(node: Node, folder: Path) -> Iterator[None]:
    """Run a process of that name; a real one is not on every machine that runs the tests."""
    program = folder / "flanneld"
    shutil.copy("/bin/sleep", program)
    process = node.popen([str(program), "60"])
    try:
        comm = Path(f"/proc/{process.pid}/comm")
        eventually(lambda: comm.read_text() == "flanneld\n", "it runs")
        yield
    finally:
        process.kill()
        process.communicate()


def test_a_network_that_only_flanneld_made_is_none_of_ours(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, datapath="kernel", pods_per_node=0, start_daemons=False)
    node = lab.node("n1")
    node.subnet_file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\nFLANNEL_MTU=1450\n")
    vxlan = "id 1 dev eth0 local 192.168.64.1 dstport 8472 nolearning"
    for line in (
        f"link add flannel.1 type vxlan {vxlan}",
        "address add 10.1.5.0/32 dev flannel.1",
        "link set flannel.1 up",
        "route add 10.1.7.0/24 via 10.1.7.0 dev flannel.1 onlink",
    ):
        node.run(["ip", *line.split()])
    node.state_dir.rmdir()
    before = everything(node)
    assert "nothing to do: no network of ours" in flannel(node, "down", "--purge")
    assert changes(before, everything(node)) == []


def test_down_works_on_a_full_disk(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="ebpf", pods_per_node=1)
    node = lab.node("n1")
    node.kill_daemon()
    full = f"mount -t tmpfs -o size=8k full {node.state_dir}; head -c 1M /dev/zero > {node.state_dir}/x"
    script = f"{full}; exec {' '.join(command(node, 'down'))}"
    said = node.run(["unshare", "--mount", "sh", "-c", script], check=False)
    assert "No space left on device" in said.stderr
    assert "Traceback" not in said.stderr
    assert node.hooks() == []
    assert lab.pod("n1p1").run(["ping", "-c1", "-W2", str(lab.pod("n2p1").ip)]).returncode == 0


def test_a_daemon_starts_on_a_full_disk(make_lab: MakeLab) -> None:
    """It has no report, and says so; packets go."""
    lab = make_lab(datapath="ebpf", pods_per_node=1)
    node = lab.node("n1")
    node.stop_daemon()
    full = f"mount -t tmpfs -o size=4k full {node.state_dir}; head -c 1M /dev/zero > {node.state_dir}/x"
    log = node.folder / "full.log"
    script = f"{full}; exec {' '.join(node.daemon_command())} 2>{log}"
    daemon = node.popen(["unshare", "--mount", "sh", "-c", script])
    try:
        eventually(lambda: log.exists() and "ready: subnet" in log.read_text(), log.read_text, 30)
        assert "No space left on device" in log.read_text()
        assert lab.pod("n1p1").run(["ping", "-c1", "-W5", str(lab.pod("n2p1").ip)]).returncode == 0
    finally:
        daemon.terminate()
        daemon.communicate(timeout=30)
    assert "Traceback" not in log.read_text()


def test_several_downs_at_once_all_end_well(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, datapath="ebpf", pods_per_node=1)
    node = lab.node("n1")
    for _ in range(3):
        downs = [node.popen(command(node, "down", *purge)) for purge in ((), ("--purge",), ())]
        said = [one.communicate(timeout=60)[1] for one in downs]
        assert [one.returncode for one in downs] == [0, 0, 0], said
        assert node.hooks() == []
        node.start_daemon()
        ready(node)
        lab.wait_attached([node])


def test_down_finds_a_daemon_whose_files_are_gone(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, datapath="ebpf", pods_per_node=1)
    node = lab.node("n1")
    daemon = node.daemon
    assert daemon
    node.run(["sh", "-c", f"rm -r {node.state_dir}/*"])
    flannel(node, "down")
    assert not daemon.alive
    assert node.hooks() == []


def test_release_frees_the_lease_and_only_this_nodes(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="kernel", pods_per_node=0)
    node, other = lab.nodes
    subnets = node.subnet, other.subnet
    flannel(node, "down", "--purge", "--release")
    assert list(lab.leases()) == [subnets[1]]
    eventually(lambda: str(subnets[0]) not in other.run(["ip", "route"]).stdout, "the peer forgets us")


def test_a_reservation_is_not_released(make_lab: MakeLab) -> None:
    lab = make_lab(nodes=1, datapath="kernel", pods_per_node=0, start_daemons=False)
    node = lab.node("n1")
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/subnets/10.1.9.0-24", '{"PublicIP":"192.168.64.1"}')
    node.start_daemon()
    ready(node)
    flannel(node, "down", "--release")
    assert [str(subnet) for subnet in lab.leases()] == ["10.1.9.0/24"]


HALF_BROKEN = {
    "no state folder": "rm -r {state}",
    "no pins": "rm -r {pins}",
    "no subnet.env": "rm {env}",
    "only pins": "rm -r {state} {env}",
    "only subnet.env": "rm -r {state} {pins}",
    "no device": "ip link del flannel.1",
    "no uplink": "ip link del eth0",
    "an unfinished load": "mkdir {pins}/10-1-0-0-16/progs-0123-tmp",
    "a broken report": "echo '{{' > {state}/10.1.0.0-16.status.json",
    "folders for files": "cd {state}; rm *.json; mkdir 10.1.0.0-16.status.json 10.1.0.0-16.before.json",
    "another's report": 'echo \'{{"network":"10.1.0.0/16"}}\' > {state}/10.1.0.0-16.status.json',
}


@pytest.mark.parametrize("fault", HALF_BROKEN)
def test_purge_works_on_a_half_broken_node(make_lab: MakeLab, fault: str) -> None:
    lab = make_lab(nodes=1, datapath="ebpf", pods_per_node=1)
    node = lab.node("n1")
    node.kill_daemon()
    command = HALF_BROKEN[fault].format(state=node.state_dir, pins=node.pin_root, env=node.subnet_file)
    node.run(["sh", "-c", command])
    assert "running" in tell(node, "status").stdout  # whatever lies there, it is told without a trace
    if "folders" in fault:
        refused = tell(node, "down", "--purge")
        assert "10.1.0.0-16.status.json cannot be removed: Is a directory" in refused.stderr
        node.run(["sh", "-c", f"rmdir {node.state_dir}/*.json"])
    flannel(node, "down", "--purge")
    left = everything(node)
    assert not any("flannel" in line or "proto 251" in line for line in left["links"] + left["routes"])
    assert not any("fl_" in line for line in left["filters"] + left["hooks"])
    assert not any("FLANNEL" in line for line in left["rules"])
    assert not node.pin_root.exists()
    assert not node.subnet_file.exists()


def test_one_daemon_per_network(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(nodes=1, datapath="kernel", pods_per_node=0)
    node = lab.node("n1")
    second = node.run(node.daemon_command(), check=False, timeout=60)
    assert second.returncode == 1
    assert f"network 10.1.0.0/16 is served by process {node.daemon and node.daemon.pid}" in second.stderr
    elsewhere = node.run(node.daemon_command([f"--state-dir={tmp_path}"]), check=False, timeout=60)
    assert elsewhere.returncode == 1
    assert "network 10.1.0.0/16 is served by another flannel-ebpf on this host" in elsewhere.stderr
    assert node.daemon


def second_network(lab: Lab, node: Node, folder: Path, vni: int) -> list[str]:
    """Configure a network beside the lab's own; return its daemon's command line."""
    lab.etcdctl(
        "put",
        "/second/config",
        json.dumps({"Network": "10.2.0.0/16", "Backend": {"Type": "vxlan", "VNI": vni}}),
    )
    return node.daemon_command(
        [
            "--etcd-prefix=/second",
            f"--subnet-file={folder}/{node.name}.env",
            f"--state-dir={folder}/{node.name}",
            f"--bpf-pin-root={node.pin_root}-second",
            f"--etcd-endpoints={ETCD_ENDPOINT}",
        ]
    )


def test_two_networks_of_one_vni_or_one_subnet_file_are_refused(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(nodes=1, datapath="kernel", pods_per_node=0)
    node = lab.node("n1")
    refused = node.run(second_network(lab, node, tmp_path, 1), check=False, timeout=60)
    assert refused.returncode == 1
    assert "device flannel.1 is served by another" in refused.stderr
    assert "Backend.VNI" in refused.stderr
    same_file = [*second_network(lab, node, tmp_path, 2), f"--subnet-file={node.subnet_file}"]
    refused = node.run(same_file, check=False, timeout=60)
    assert refused.returncode == 1
    assert f"{node.subnet_file} is served by another" in refused.stderr
    assert "--subnet-file" in refused.stderr


def test_two_networks_on_one_host_do_not_touch_each_other(make_lab: MakeLab, tmp_path: Path) -> None:
    lab = make_lab(datapath="ebpf", extra_up_args=("--ip-masq",))
    seconds = [node.popen(second_network(lab, node, tmp_path, 2)) for node in lab.nodes]
    try:
        node = lab.node("n1")
        with stream(lab.pod("n1p1"), lab.pod("n2p1")) as delivery:
            eventually(
                lambda: "dev flannel.2 proto 251" in node.run(["ip", "route"]).stdout, "both networks", 15.0
            )
            both = unchanging(lambda: everything(node), "what n1 holds")
            restart(node)
            assert changes(both, everything(node), "sockets") == []
            options = [
                "--etcd-prefix=/second",
                f"--subnet-file={tmp_path}/n1.env",
                f"--state-dir={tmp_path}/n1",
            ]
            flannel(node, "down", "--purge", *options, f"--bpf-pin-root={node.pin_root}-second")
            seconds[0].wait(60)
        assert delivery.lost == 0
        left = everything(node)
        assert not any("flannel.2" in line or "10.2." in line for lines in left.values() for line in lines)
        assert any("flannel.1" in line for line in left["links"])
        assert any("10.1.0.0/16" in line for line in left["rules"])
    finally:
        for process in seconds:
            process.terminate()
            process.communicate(timeout=60)
