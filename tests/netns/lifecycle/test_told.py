"""What a daemon tells: systemd when it is ready, probes, Prometheus what it counts, `status` all of it."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from flannel_ebpf.lab import Lab, Node
from tests.namespaces import inside
from tests.netns.kinds import BULK
from tests.netns.labs import MakeLab
from tests.netns.life import flannel, tell
from tests.netns.traffic import delivered, ping, transfer
from tests.polls import eventually

HEALTH, METRICS = 10256, 9100
FLAGS = ("--healthz-ip=127.0.0.1", f"--healthz-port={HEALTH}", f"--metrics-listen=127.0.0.1:{METRICS}")


def get(node: Node, path: str, port: int = HEALTH) -> tuple[int, str]:
    """Return status and text of an answer; 0 while nobody listens."""
    with inside(node.ns):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        except ConnectionRefusedError:
            return 0, ""
        finally:
            connection.close()


class Systemd:
    """What a service manager reads from a daemon that it started."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def start(self, node: Node) -> None:
        """Start the node's daemon, and nothing else: etcd would say that it is ready, too."""
        with pytest.MonkeyPatch.context() as environment:
            environment.setenv("NOTIFY_SOCKET", str(self._path))
            node.start_daemon()

    def heard(self, line: str) -> bool:
        """Say whether it has said this line."""
        with suppress(BlockingIOError):
            while True:
                self.lines += self.socket.recv(4096).decode().splitlines()
        return line in self.lines


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[Systemd]:
    manager = Systemd(tmp_path / "notify")
    yield manager
    manager.socket.close()


def test_a_node_is_ready_when_packets_can_flow_and_not_before(make_lab: MakeLab, systemd: Systemd) -> None:
    lab = make_lab(nodes=1, pods_per_node=0, start_daemons=False, datapath="ebpf", extra_up_args=FLAGS)
    node, config = lab.node("n1"), f"{lab.spec.etcd_prefix}/config"
    lab.etcdctl("del", config)
    systemd.start(node)
    eventually(lambda: get(node, "/healthz")[0] == 200, "it is alive before it has a config")
    eventually(lambda: "trying again" in node.daemon_log(), "it waits for a config")
    assert get(node, "/readyz")[0] == 503
    assert not systemd.heard("READY=1")
    lab.etcdctl("put", config, lab.spec.config_json())
    eventually(lambda: systemd.heard("READY=1"), "READY=1", 30)
    assert node.environment(), "whoever waits for us starts pods"
    assert node.run(["ip", "link", "show", "dev", "flannel.1"]).returncode == 0
    assert get(node, "/readyz")[0] == 200
    node.stop_daemon()
    assert get(node, "/healthz")[0] == 0


def test_a_node_is_ready_although_a_peer_cannot_be_reached(make_lab: MakeLab, systemd: Systemd) -> None:
    lab = make_lab(
        nodes=1,
        pods_per_node=0,
        start_daemons=False,
        backend="host-gw",
        datapath="kernel",
        extra_up_args=FLAGS,
    )
    node = lab.node("n1")
    node.run(["ip", "route", "del", "default"])
    stranger = '{"PublicIP":"198.51.100.7","BackendType":"host-gw"}'
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/subnets/10.1.7.0-24", stranger)
    systemd.start(node)
    eventually(lambda: get(node, "/readyz")[0] == 200, "ready", 30)
    eventually(lambda: "10.1.7.0/24" in node.daemon_log(), "the peer is told of")
    assert systemd.heard("READY=1")


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", pods_per_node=1, extra_up_args=FLAGS)


def metrics(node: Node) -> dict[tuple[str, ...], float]:
    """Return every sample as (name, label values in the order of their names...) -> value."""
    status, text = get(node, "/metrics", METRICS)
    assert status == 200
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_count_what_happened(lab: Lab) -> None:
    n1, n2 = lab.nodes
    one, two = n1.pods[0], n2.pods[0]
    assert ping(one, two.ip, 20) == 20
    before = metrics(n1)
    sent = 500
    assert delivered(one, two, sent, 128) == sent
    now = metrics(n1)

    def grown(*name: str) -> float:
        return now.get(name, 0.0) - before.get(name, 0.0)

    fast = grown("flannel_ebpf_packets_total", "from_pod", "fast_vxlan")
    kernel = grown("flannel_ebpf_kernel_path_packets_total", "tx")
    assert fast > 0.8 * sent
    wrapped = grown("flannel_ebpf_packets_total", "to_peer", "wrapped")
    assert fast + kernel + wrapped >= sent
    peer = str(n2.subnet)
    assert grown("flannel_ebpf_peer_packets_total", "tx", peer) == fast
    assert grown("flannel_ebpf_peer_bytes_total", "tx", peer) == fast * (128 + 28)
    for name, value in (
        ("flannel_ebpf_peers", 1),
        ("flannel_ebpf_pods", 1),
        ("flannel_ebpf_accelerated", 1),
        ("flannel_ebpf_skipped_leases", 0),
    ):
        assert now[name,] == value
    assert now["flannel_ebpf_failures", "own"] == now["flannel_ebpf_failures", "part"] == 0
    assert now["flannel_ebpf_map_entries", "fl_peers"] == 1
    assert now["flannel_ebpf_passes_total", "whole", "ok"] >= 1
    assert now["flannel_ebpf_etcd_requests_total", "ok"] >= 1
    assert 0 < now["flannel_ebpf_lease_expires_in_seconds",] <= 86400
    assert 1e6 < now["process_resident_memory_bytes",] < 1e9


def test_metrics_and_status_follow_a_lease_that_is_none_and_a_daemon_that_ends(lab: Lab) -> None:
    node = lab.node("n1")
    key = f"{lab.spec.etcd_prefix}/subnets/10.1.250.0-24"
    value = '{"PublicIP":"192.168.64.250","BackendType":"vxlan","BackendData":{"VtepMAC":"zz"}}'
    lab.etcdctl("put", key, value)
    eventually(lambda: metrics(node)["flannel_ebpf_skipped_leases",] == 1, "it is counted")
    [told] = json.loads(flannel(node, "status", "--json"))
    assert [line.partition(":")[0] for line in told["skipped"]] == ["10.1.250.0/24"]
    assert (told["running"], told["ready"], told["pods"], told["peers"]["wanted"]) == (True, True, 1, 1)
    assert {hook["device"] for hook in told["kernel"]["hooks"]} == {"eth0", "flannel.1", node.pods[0].veth}
    lab.etcdctl("del", key)
    eventually(lambda: metrics(node)["flannel_ebpf_skipped_leases",] == 0, "it is forgotten")


def test_status_counts_what_bpf_carried_and_says_where_programs_stand(lab: Lab) -> None:
    n1, n2 = lab.nodes
    transfer(n1.pods[0], n2.pods[0], BULK)
    lines = flannel(n1, "status").splitlines()
    assert f"network   {lab.spec.network}, vxlan" in lines
    assert f"node      {n1.ip} on eth0, subnet {n1.subnet}" in lines
    assert n1.daemon
    assert f"daemon    running, process {n1.daemon.pid}" in lines
    assert "peers     1, pods 1" in lines
    assert any(line.startswith("datapath  BPF by tcx") for line in lines)
    [peer] = [line for line in lines if line.startswith("peer ")]
    assert f"{n2.subnet} via {n2.ip} (vxlan)" in peer
    assert int(peer.partition("): ")[2].split()[0]) > 100
    assert any(line.startswith("packets   FAST_VXLAN") for line in lines)


def test_status_of_a_daemon_that_was_killed_says_so_with_its_exit_status(lab: Lab) -> None:
    node = lab.node("n2")
    node.kill_daemon()
    line = tell(node, "status")
    assert line.returncode == 3
    assert "daemon    NOT running" in line.stdout
    assert "datapath  BPF by tcx" in line.stdout, "programs stay"
    node.start_daemon()
    eventually(lambda: tell(node, "status").returncode == 0, "it runs again", 30)
