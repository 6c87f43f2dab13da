"""Which metrics there are: names and labels that boards and alerts rely on."""

from __future__ import annotations

import json
import re
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from flannel_ebpf.agent.metrics import PEERS, NodeCollector, _traffic, registry
from flannel_ebpf.agent.reconcile import Outcome, failed_peers
from flannel_ebpf.base import tally
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends.peer import Peer
from flannel_ebpf.desired.objects import FdbEntry, Neighbour, RelayPeer, Route, VxlanLink
from flannel_ebpf.desired.plan import Failure, Put
from flannel_ebpf.desired.proof.proof import Guard, Level, Proof

TOP = Path(__file__).parents[3]


@pytest.fixture
def text(tmp_path: Path) -> str:
    outcome = Outcome(stopped=KernelError("no"), pods=2, accelerated=True)
    collector = NodeCollector(IPv4Network("10.1.0.0/16"), tmp_path, "lo", lambda: outcome, "abc")
    tally.count("passes", "whole", "ok")
    tally.mark("etcd_answer", time.clock_gettime(time.CLOCK_BOOTTIME) - 7)
    tally.mark("lease_expiry", time.clock_gettime(time.CLOCK_BOOTTIME) + 100)
    return generate_latest(registry(collector)).decode()


@pytest.mark.parametrize(
    "line",
    [
        r'flannel_ebpf_build_info{commit="abc",python="3[\d.]+",version="[\d.]+"} 1.0',
        r'flannel_ebpf_passes_total{kind="whole",result="ok"} \d+.0',
        r"flannel_ebpf_etcd_last_answer_age_seconds 7.\d+",
        r"flannel_ebpf_lease_expires_in_seconds 99.\d+",
        r"flannel_ebpf_accelerated 1.0",
        r'flannel_ebpf_failures{weight="own"} 1.0',
        r'flannel_ebpf_kernel_path_bytes_total{direction="tx"} \d.*',
        r"process_resident_memory_bytes \d.*",
    ],
)
def test_a_node_without_programs_tells_of_itself(text: str, line: str) -> None:
    assert re.search(f"^{line}$", text, re.MULTILINE), text


def test_a_peer_has_failed_once_whatever_of_its_way_failed() -> None:
    peers = [
        Peer(IPv4Network(f"10.1.{n}.0/24"), IPv4Address(f"192.0.2.{n}"), Mode.VXLAN, 1500, True, mac(n))
        for n in range(1, 6)
    ]
    wanting = (
        Route(peers[0].subnet, None, "flannel.1"),
        Neighbour("flannel.1", IPv4Address("10.1.1.0"), mac(1)),
        FdbEntry("flannel.1", mac(2), IPv4Address("192.0.2.2")),
        RelayPeer(peers[2].subnet, peers[2].public_ip),
        VxlanLink("flannel.1", 1, 8472, IPv4Address("192.0.2.9"), 2, 1450, mac(9)),
    )
    failures = [Failure(Put(one), KernelError("no")) for one in wanting]
    assert failed_peers(peers, failures) == 3
    assert failed_peers(peers, failures[-1:]) == 0


def test_peers_are_told(tmp_path: Path) -> None:
    outcome = Outcome(peers=5, failed_peers=3)
    collector = NodeCollector(IPv4Network("10.1.0.0/16"), tmp_path, "", lambda: outcome, "abc")
    text = generate_latest(registry(collector)).decode()
    assert "flannel_ebpf_peers 5.0" in text
    assert "flannel_ebpf_peers_failed 3.0" in text


def test_addresses_are_told_by_level(tmp_path: Path) -> None:
    proof = Proof(
        ((1, 200),), (Guard(((201, 203),), Level.FLOWS, "a"), Guard(((204, 204),), Level.KERNEL, "b"))
    )
    collector = NodeCollector(IPv4Network("10.1.0.0/16"), tmp_path, "", lambda: Outcome(proof=proof), "abc")
    text = generate_latest(registry(collector)).decode()
    for level, count in (("free", 200), ("flows", 3), ("kernel", 1)):
        assert f'flannel_ebpf_addresses{{level="{level}"}} {count}.0' in text


def mac(number: int) -> Mac:
    return Mac(bytes((2, 0, 0, 0, 0, number)))


def test_many_peers_are_bounded_the_idle_ones_together() -> None:
    peers = [
        {"subnet": f"10.{number}", "tx_packets": 1, "tx_bytes": number, "rx_packets": 1, "rx_bytes": 0}
        for number in range(PEERS + 5)
    ]
    packets, size = _traffic(peers)
    assert len(packets.samples) == 2 * (PEERS + 1)
    (other,) = [one for one in size.samples if one.labels == {"peer": "other", "direction": "tx"}]
    assert other.value == 0 + 1 + 2 + 3 + 4


def test_the_board_and_the_alerts_name_metrics_that_there_are() -> None:
    known = (TOP / "docs/metrics.md").read_text()
    board = (TOP / "deploy/grafana/flannel-ebpf.json").read_text()
    assert json.loads(board)["panels"]
    used = set(re.findall(r"\bflannel_ebpf_\w+", board + (TOP / "deploy/prometheus/alerts.yml").read_text()))
    assert {name for name in used if f"`{name}" not in known} == set()
