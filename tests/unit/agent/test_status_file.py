"""The report of a pass: all that `status` and `down` need, written when it changed and bounded in size."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.agent.status_file import LONGEST, SHOWN, Report
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.model import Mac, Skipped, Uplink
from flannel_ebpf.base.options import EtcdOptions, Options
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.desired.objects import LinkAddress, Neighbour
from flannel_ebpf.desired.plan import Failure, Put
from flannel_ebpf.desired.proof.proof import Guard, Level, Proof
from flannel_ebpf.desired.proof.ranges import of_network
from flannel_ebpf.host import report
from flannel_ebpf.leases.cluster import View
from tests.samples import lease, stack

NETWORK = ip_network("10.1.0.0/16")
CONFIG = parse_network_config('{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}', "test")
UPLINK = Uplink(2, "eth0", IPv4Address("192.168.64.7"), 24, 1500, Mac(bytes(6)))
NODE = Node((stack(CONFIG, UPLINK, "10.1.7.0/24"),))
MAC = Mac(b"\2\0\0\0\0\7")
LEASE = lease("10.1.7.0/24", "192.168.64.7", etcd_lease=5)
VIEW = View((LEASE,), (Skipped("/subnets/x", "no subnet"),), may_remove=True)

TWO = of_network(ip_network("10.1.5.2/32"))


def failure(number: int, *, own: bool) -> Failure:
    peer = Neighbour("flannel.1", IPv4Address(number), MAC)
    obj: Any = LinkAddress("flannel.1", IPv4Interface("10.1.7.0/32")) if own else peer
    return Failure(Put(obj), KernelError(f"failure {number}"))


@pytest.fixture
def options(tmp_path: Path) -> Options:
    return Options(state_dir=tmp_path, etcd=EtcdOptions(prefix="/net"))


def written(options: Options) -> dict[str, Any]:
    found = report.read(options.state_dir, NETWORK)
    assert found is not None
    return found


def test_it_says_what_the_pass_found_and_whose_it_is(options: Options) -> None:
    outcome = Outcome(
        peers=2,
        skipped=(Skipped("/subnets/y", "overlaps"),),
        failures=(failure(1, own=False), failure(2, own=True)),
        pods=3,
        accelerated=True,
        attach="tcx",
        why_not="",
        lacks=["csum_level"],
        warnings=("a warning",),
        proof=Proof(of_network(ip_network("10.1.6.0/24")), (Guard(TWO, Level.FLOWS, "a rule"),)),
    )
    Report(options).write(NODE, LEASE, replace(VIEW, doubt="etcd was wiped"), outcome, ready=True)
    wanted = {
        "pid": os.getpid(),
        "network": "10.1.0.0/16",
        "etcd_prefix": "/net",
        "backend": "vxlan",
        "overlay": "flannel.1",
        "uplink": "eth0",
        "public_ip": "192.168.64.7",
        "subnet": "10.1.7.0/24",
        "reservation": False,
        "datapath": {"asked": "auto", "accelerated": True, "attach": "tcx", "why_not": ""},
        "peers": {"wanted": 2, "held": "etcd was wiped"},
        "on_demand": -1,
        "pods": 3,
        "free": 256,
        "guards": [{"addresses": "10.1.5.2", "level": "flows", "why": "a rule"}],
        "skipped": ["/subnets/x: no subnet", "/subnets/y: overlaps"],
        "ready": True,
        "lacks": ["csum_level"],
        "warnings": ["a warning"],
        "failures": ["failure 2", "failure 1"],
        "handed_over": False,
    }
    found = written(options)
    assert {key: found[key] for key in wanted} == wanted


def test_a_reservation_and_a_node_that_is_not_ready_are_said(options: Options) -> None:
    Report(options).write(
        NODE, replace(LEASE, etcd_lease=0), VIEW, Outcome(stopped=KernelError("no")), ready=False
    )
    found = written(options)
    assert (found["reservation"], found["ready"], found["failures"]) == (True, False, ["no"])


def test_it_is_written_only_when_it_changed(options: Options) -> None:
    one = Report(options)
    one.write(NODE, LEASE, VIEW, Outcome(), ready=True)
    path = report.path_of(options.state_dir, NETWORK)
    path.write_text("somebody else's")
    one.write(NODE, LEASE, VIEW, Outcome(), ready=True)
    assert path.read_text() == "somebody else's"
    one.write(NODE, LEASE, VIEW, Outcome(), ready=False)
    assert written(options)["ready"] is False


def test_of_many_the_first_are_written_and_none_is_long(options: Options) -> None:
    view = replace(VIEW, skipped=tuple(Skipped(f"/subnets/{n}", "x" * 2000) for n in range(200)))
    failures = tuple(failure(n, own=False) for n in range(SHOWN))
    Report(options).write(NODE, LEASE, view, Outcome(failures=failures), ready=True)
    found = written(options)
    assert len(found["skipped"]) == SHOWN + 1
    assert found["skipped"][-1] == "and 150 more"
    assert found["skipped"][0] == f"/subnets/0: {'x' * (LONGEST - 12)}... (2012 characters)"
    assert found["failures"] == [f"failure {n}" for n in range(SHOWN)]


def test_a_place_that_cannot_be_written_is_one_warning_and_is_tried_again(
    options: Options, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    elsewhere = replace(options, state_dir=tmp_path / "later")
    one = Report(elsewhere)
    one.write(NODE, LEASE, VIEW, Outcome(), ready=True)
    one.write(NODE, LEASE, VIEW, Outcome(), ready=True)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["--state-dir"]
    (tmp_path / "later").mkdir()
    one.write(NODE, LEASE, VIEW, Outcome(), ready=True)
    assert json.loads(report.path_of(elsewhere.state_dir, NETWORK).read_text())["ready"] is True
