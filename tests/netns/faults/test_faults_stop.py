"""However etcd fares, a daemon ends within seconds when told to, and never half."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator

import pytest

from flannel_ebpf.desired.objects import ROUTE_PROTOCOL
from flannel_ebpf.lab.spec import ETCD_IP
from tests.netns.etcd_cluster import Certs, EtcdCluster
from tests.netns.faults.fault_lab import PREFIX, FaultLab, fault_lab
from tests.netns.labs import MakeLab
from tests.polls import eventually

AT_ONCE = 5.0
"""Seconds within which a daemon ends."""
TTL = 6
"""Seconds that a lease lives; it is renewed after a third of that."""


@pytest.fixture(scope="module")
def faults(make_shared_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultLab]:
    ttl = f"--lease-ttl={TTL}"
    with fault_lab(make_shared_lab, tmp_path_factory.mktemp("stop"), ttl, datapath="kernel") as made:
        yield made


@pytest.fixture(autouse=True)
def running(faults: FaultLab) -> None:
    """Each test begins with an etcd that serves and both daemons."""
    (member,) = faults.cluster.members
    if member.frozen:
        member.thaw()
    if member.process is None:
        faults.cluster.start()
    faults.start()


def ends_at_once(faults: FaultLab) -> None:
    daemon = faults.nodes[0].daemon
    assert daemon
    mark = len(faults.nodes[0].daemon_log())
    daemon.signal(signal.SIGTERM)
    eventually(lambda: not daemon.alive, faults.nodes[0].log_tail, AT_ONCE)
    said = faults.nodes[0].daemon_log()[mark:]
    assert "stopped" in said.splitlines()[-1]
    assert "Traceback" not in said


def test_sigterm_while_a_renewal_hangs_in_a_frozen_etcd(faults: FaultLab) -> None:
    faults.cluster.members[0].freeze()
    time.sleep(TTL / 2)
    ends_at_once(faults)


def test_sigterm_while_etcd_is_away(faults: FaultLab) -> None:
    one = faults.nodes[0]
    mark = len(one.daemon_log())
    faults.cluster.kill()
    eventually(lambda: "watch of etcd ended" in one.daemon_log()[mark:], "the daemon notices")
    ends_at_once(faults)


@pytest.mark.parametrize("fault", ["frozen", "away"])
def test_sigterm_while_joining(faults: FaultLab, fault: str) -> None:
    one = faults.nodes[0]
    one.stop_daemon()
    (member,) = faults.cluster.members
    if fault == "frozen":
        member.freeze()
    else:
        member.kill()
    mark = len(one.daemon_log())
    one.start_daemon(faults.args)
    eventually(lambda: "waiting for etcd" in one.daemon_log()[mark:], "the daemon asks etcd")
    ends_at_once(faults)


@pytest.mark.parametrize(
    "broken",
    [
        "leases.cluster.Cluster.refresh",
        "leases.lease_keeper.LeaseKeeper._keep",
        "leases.etcd.watch.Watch._follow",
        "kernel.monitor.KernelMonitor._receive",
    ],
)
def test_a_bug_in_a_thread_ends_the_daemon_and_is_told(faults: FaultLab, broken: str) -> None:
    one = faults.nodes[0]
    one.stop_daemon()
    one.run(["ip", "route", "flush", "proto", str(ROUTE_PROTOCOL)], check=False)
    module, name, method = broken.rsplit(".", 2)
    code = f"""
import sys
from flannel_ebpf.{module} import {name}
def bug(self, *_):
    raise RuntimeError("made for a test")
{name}.{method} = bug
from flannel_ebpf.cli import main
sys.exit(main(sys.argv[1:]))
"""
    arguments = one.daemon_command(faults.args)[3:]
    process = one.popen([sys.executable, "-c", code, *arguments])
    if "monitor" in broken:
        peer = str(faults.nodes[1].subnet)
        eventually(lambda: one.run(["ip", "route", "show", peer]).stdout, "the daemon is at work")
        one.run(["ip", "route", "del", peer])
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 1, said
    last = said.splitlines()[-1]
    assert last.startswith("flannel-ebpf: a bug ended thread")
    assert "made for a test" in last
    assert all(line[:1] in "IWEF" and line[1:5].isdigit() for line in said.splitlines()[:-1]), said


def test_a_wrong_authority_is_named_and_the_right_one_works(
    make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tls")
    right, wrong = Certs.make(folder / "right", str(ETCD_IP)), Certs.make(folder / "wrong", str(ETCD_IP))
    lab = make_lab(start_daemons=False, datapath="kernel", nodes=1)
    node = lab.nodes[0]
    with EtcdCluster(folder / "etcd", certs=right, ns=lab.spec.switch_ns, host=str(ETCD_IP)) as cluster:
        cluster.ctl("put", f"{PREFIX}/config", lab.spec.config_json())
        endpoint = f"--etcd-endpoints={cluster.endpoints[0]}"
        node.start_daemon((endpoint, f"--etcd-cafile={wrong.path('ca.pem')}"))
        eventually(lambda: "trying again" in node.daemon_log(), "it says that it keeps trying", 10)
        line = next(one for one in node.daemon_log().splitlines() if "trying again" in one)
        assert "certificate" in line.lower(), line
        time.sleep(3)
        assert node.daemon
        assert len(node.daemon_log().splitlines()) < 8, node.daemon_log()
        node.stop_daemon()
        node.start_daemon((endpoint, f"--etcd-cafile={right.path('ca.pem')}"))
        eventually(lambda: "ready:" in node.daemon_log(), "ready", 10)
