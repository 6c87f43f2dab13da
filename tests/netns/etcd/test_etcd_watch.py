"""Watch against real servers: after any fault the next change still wakes, and nothing before it is missed.

Each test runs a LeaseNode and looks at what its passes see; the writer goes through etcdctl or a client
of its own. Frozen servers and long outages are in test_faults_servers.py, with whole nodes.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.model import Lease
from flannel_ebpf.leases.etcd import EtcdClient, Registry
from tests.netns.etcd.lease_node import PREFIX, LeaseNode, running
from tests.netns.etcd_cluster import EtcdCluster
from tests.polls import eventually, unchanging
from tests.samples import lease as sample

log = logging.getLogger("figures")


def peer(number: int) -> Lease:
    return sample(IPv4Network((0x0A010000 + (number << 8), 24)), IPv4Address(0xC0A80000 + number), "host-gw")


@pytest.fixture
def one(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "one") as cluster:
        yield cluster


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "three", size=3) as cluster:
        yield cluster


def check_wakes(node: LeaseNode, writer: Registry, number: int) -> float:
    """Create a peer's lease and return how many seconds later the node saw it."""
    start = time.monotonic()
    subnet = writer.create(peer(number), ttl=600).subnets[0]
    return eventually(lambda: node.read_at.get(subnet), f"the node sees peer {number}") - start


def reads(cluster: EtcdCluster) -> float:
    """Return how many ranges of keys etcd's server has been asked for."""
    with urllib.request.urlopen(f"{cluster.endpoints[0]}/metrics") as answer:  # noqa: S310 - on loopback
        lines = answer.read().decode().splitlines()
    counts = (line for line in lines if line.startswith("grpc_server_started_total") and 'd="Range"' in line)
    return sum(float(line.split()[-1]) for line in counts)


def test_each_put_is_seen_and_an_idle_watch_reads_nothing(one: EtcdCluster) -> None:
    node, writer = LeaseNode(one.options(), 1), one.registry()
    with running(node):
        latencies = [check_wakes(node, writer, number) for number in range(10, 40)]
        unchanging(lambda: reads(one), "the number of reads of an idle node", 2)
    median, worst = statistics.median(latencies) * 1e3, max(latencies) * 1e3
    log.info("put to view: median %.1f ms, worst %.1f ms", median, worst)


def test_a_killed_endpoint_is_left_for_another(three: EtcdCluster) -> None:
    node = LeaseNode(three.options(), 1)
    with running(node):
        three.members[0].kill()
        writer = Registry(EtcdClient(three.options()), PREFIX)
        eventually(writer.snapshot, "a leader")
        check_wakes(node, writer, 10)


def eventually_created(writer: Registry, number: int) -> IPv4Network:
    return writer.create(peer(number), ttl=600).subnets[0]


def test_a_rolling_restart_loses_nothing(three: EtcdCluster) -> None:
    node = LeaseNode(three.options(), 1)
    writer = Registry(EtcdClient(three.options()), PREFIX)
    with running(node):
        subnets = []
        for number, member in enumerate(three.members):
            member.terminate()
            subnets.append(eventually_created(writer, 10 + number))
            three.start(member)
            subnets.append(eventually_created(writer, 20 + number))
        eventually(lambda: node.sees(node.keeper.lease.subnets[0], *subnets), "all six peers")
        check_wakes(node, writer, 30)
        assert not node.lost


def compact(cluster: EtcdCluster, writer: Registry) -> None:
    cluster.ctl("compact", str(writer.snapshot().revision))


def defragment(cluster: EtcdCluster, _writer: Registry) -> None:
    cluster.ctl("defrag")


@pytest.mark.parametrize("maintain", [compact, defragment])
def test_maintenance_while_watching(
    one: EtcdCluster, maintain: Callable[[EtcdCluster, Registry], None]
) -> None:
    node, writer = LeaseNode(one.options(), 1), one.registry()
    with running(node):
        check_wakes(node, writer, 10)
        maintain(one, writer)
        check_wakes(node, writer, 11)


def test_a_compaction_while_disconnected_is_found_by_the_next_snapshot(three: EtcdCluster) -> None:
    """The node knows one member, which is away while leases come, go and are compacted."""
    alone = three.options()
    node = LeaseNode(type(alone)(alone.endpoints[:1]), 1)
    writer = Registry(EtcdClient(type(alone)(alone.endpoints[1:])), PREFIX)
    with running(node):
        check_wakes(node, writer, 10)
        three.members[0].kill()
        gone = eventually_retried(lambda: writer.create(peer(11), ttl=600))
        writer.delete(next(it for it in writer.snapshot().leases if it.subnets[0] == peer(10).subnets[0]))
        writer.delete(gone)
        subnet = eventually_created(writer, 12)
        three.ctl("compact", str(writer.snapshot().revision), endpoints=three.endpoints[1:2])
        three.start()
        eventually(lambda: node.sees(node.keeper.lease.subnets[0], subnet), "exactly the last state")
        check_wakes(node, writer, 13)


def eventually_retried(create: Callable[[], Lease]) -> Lease:
    """Create once the cluster has a leader again."""
    result: list[Lease] = []

    def attempt() -> bool:
        result.append(create())
        return True

    eventually(attempt, "created", 20)
    return result[-1]


def test_a_restored_etcd_with_a_lower_revision_is_read_afresh(three: EtcdCluster, tmp_path: Path) -> None:
    node = LeaseNode(three.options(), 1)
    writer = Registry(EtcdClient(three.options()), PREFIX)
    with running(node):
        check_wakes(node, writer, 10)
        three.save(tmp_path / "backup")
        for number in range(11, 16):
            check_wakes(node, writer, number)
        before = writer.snapshot().revision
        three.restore(tmp_path / "backup")
        own = node.keeper.lease.subnets[0]
        eventually(lambda: node.sees(own, peer(10).subnets[0]), "the restored state")
        assert writer.snapshot().revision < before
        check_wakes(node, writer, 20)


def test_a_member_that_lost_its_leader_is_left(three: EtcdCluster, caplog: pytest.LogCaptureFixture) -> None:
    """The first member is cut off by stopping the others' half of the cluster, then a new majority forms."""
    node = LeaseNode(three.options(), 1)
    with running(node):
        three.members[1].kill()
        three.members[2].kill()
        eventually(lambda: "watch of etcd ended" in caplog.text, "the watch is given up", 20)
        three.start()
        check_wakes(node, Registry(EtcdClient(three.options()), PREFIX), 10)


def test_stop_is_quick_in_every_state(one: EtcdCluster) -> None:
    faults: list[Callable[[], object]] = [lambda: None, one.members[0].freeze, one.members[0].kill]
    for fault in faults:
        node = LeaseNode(one.options(), 1)
        if one.members[0].process is None:
            one.start()
        node.start()
        fault()
        stopping = threading.Thread(target=node.stop)
        stopping.start()
        eventually(lambda thread=stopping: not thread.is_alive(), "the node has stopped", 3)  # type: ignore[misc]  # bound now
        if one.members[0].process is not None:
            one.members[0].thaw()
