"""The main job: two nodes, a real etcd, pods that talk, through the kernel and through BPF."""

from __future__ import annotations

import json

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.counters import device_packets, reasons
from tests.netns.labs import MakeLab


@pytest.fixture(scope="module")
def kernel_lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="kernel")


@pytest.fixture(scope="module")
def bpf_lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf")


def iperf3(lab: Lab, seconds: int = 1) -> float:
    """Gb/s that n2p1 received from n1p1."""
    server = lab.pod("n2p1").popen(["iperf3", "--server", "--one-off", "--forceflush"])
    assert server.stdout is not None
    while "Server listening" not in server.stdout.readline():
        assert server.poll() is None
    target = str(lab.pod("n2p1").ip)
    command = ["iperf3", "--client", target, "--time", str(seconds), "--json"]
    said = json.loads(lab.pod("n1p1").run(command).stdout)
    assert server.wait(60) == 0
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def assert_ping(lab: Lab, source: str, target: str) -> None:
    said = lab.pod(source).run(["ping", "-c20", "-i0.01", "-W10", str(lab.pod(target).ip)]).stdout
    assert " 0% packet loss" in said


def test_pods_talk_through_the_kernel(kernel_lab: Lab) -> None:
    assert_ping(kernel_lab, "n1p1", "n2p2")
    before = [device_packets(node, "flannel.1") for node in kernel_lab.nodes]
    assert iperf3(kernel_lab) > 0.1
    after = [device_packets(node, "flannel.1") for node in kernel_lab.nodes]
    assert all(later > earlier + 100 for earlier, later in zip(before, after, strict=True))


def test_pods_talk_through_bpf_and_the_vxlan_device_stands_still(bpf_lab: Lab) -> None:
    assert_ping(bpf_lab, "n1p1", "n2p2")
    n1, n2 = bpf_lab.nodes
    iperf3(bpf_lab)  # pods are known and flows' ports are fresh from here on
    devices = [device_packets(node, "flannel.1") for node in bpf_lab.nodes]
    counts = reasons(n1), reasons(n2)
    assert iperf3(bpf_lab, 2) > 0.1
    sent = reasons(n1) - counts[0]
    received = reasons(n2) - counts[1]
    moved = [
        device_packets(node, "flannel.1") - was for node, was in zip(bpf_lab.nodes, devices, strict=True)
    ]
    assert sent[Hook.FROM_POD, Reason.FAST_VXLAN] > 1000
    assert received[Hook.FROM_PEER, Reason.FAST_VXLAN] > 1000
    # two connections' first dozen packets and their ends, each way: nothing of the stream
    assert max(moved) < 200


def test_pods_of_one_node_and_the_hosts_talk_too(bpf_lab: Lab) -> None:
    assert_ping(bpf_lab, "n1p1", "n1p2")
    n1 = bpf_lab.node("n1")
    n1.run(["ping", "-c3", "-i0.05", "-W10", str(bpf_lab.pod("n2p1").ip)])
    bpf_lab.pod("n1p1").run(["ping", "-c3", "-i0.05", "-W10", str(bpf_lab.node("n2").subnet[1])])


def test_the_kernel_path_is_flannels(bpf_lab: Lab) -> None:
    n1, n2 = bpf_lab.nodes
    [link] = json.loads(n1.run(["ip", "-d", "-json", "link", "show", "flannel.1"]).stdout)
    data = link["linkinfo"]["info_data"]
    assert (data["id"], data["local"], data["port"], data["learning"]) == (1, str(n1.ip), 8472, False)
    assert data["link"] == "eth0"
    assert link["mtu"] == 1450
    assert int(link["address"][:2], 16) & 3 == 2
    [addresses] = json.loads(n1.run(["ip", "-4", "-json", "addr", "show", "flannel.1"]).stdout)
    [address] = addresses["addr_info"]
    assert (address["local"], address["prefixlen"]) == (str(n1.subnet.network_address), 32)
    [peer] = json.loads(n2.run(["ip", "-json", "link", "show", "flannel.1"]).stdout)
    far = str(n2.subnet.network_address)
    [route] = json.loads(n1.run(["ip", "-json", "route", "show", str(n2.subnet)]).stdout)
    assert (route["gateway"], route["dev"], route["flags"]) == (far, "flannel.1", ["onlink"])
    [neighbour] = json.loads(n1.run(["ip", "-json", "neigh", "show", "dev", "flannel.1"]).stdout)
    assert (neighbour["dst"], neighbour["lladdr"], neighbour["state"]) == (
        far,
        peer["address"],
        ["PERMANENT"],
    )
    fdb = json.loads(n1.run(["bridge", "-json", "fdb", "show", "dev", "flannel.1"]).stdout)
    [entry] = [one for one in fdb if one["mac"] == peer["address"]]
    assert (entry["dst"], entry["state"]) == (str(n2.ip), "permanent")
    ra = n1.run(["cat", "/proc/sys/net/ipv6/conf/flannel.1/accept_ra"]).stdout
    assert ra.strip() == "0"


def test_the_map_reads_plainly(bpf_lab: Lab) -> None:
    n1, n2 = bpf_lab.nodes
    dump = n1.run(["bpftool", "--json", "map", "dump", "pinned", str(n1.map_path("fl_peers"))]).stdout
    [entry] = (one["formatted"] for one in json.loads(dump))
    assert entry["key"] == {"len": 24, "addr": list(n2.subnet.network_address.packed)}
    assert entry["value"]["public_ip"] == list(n2.ip.packed)
