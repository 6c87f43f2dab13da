"""Conntrack keeps connections that BPF carries as long as those that it sees whole."""

from __future__ import annotations

import re

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.counters import reasons
from tests.netns.labs import MakeLab
from tests.netns.life import PORT, chat, flannel
from tests.polls import eventually

FAST = (Hook.FROM_POD, Reason.FAST_VXLAN)
TRACK = ["iptables", "-I", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
ESTABLISHED = 432_000


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    lab = make_shared_lab(datapath="ebpf", extra_up_args=("--revalidate=1",))
    for node in lab.nodes:
        node.run(TRACK)
    return lab


def seconds_left(node: Node) -> list[int]:
    listed = node.run(["conntrack", "-L", "-p", "tcp", "--dport", str(PORT)]).stdout
    return [int(found) for found in re.findall(r"^tcp\s+6 (\d+) ESTABLISHED", listed, re.M)]


def test_a_connection_may_rest_for_days_after_bpf_has_carried_it(lab: Lab) -> None:
    """Data is unacknowledged for conntrack when BPF takes over, and stays so: 300 s by its defaults."""
    start = reasons(lab.node("n1"))[FAST]
    with chat(lab.pod("n1p1"), lab.pod("n2p1")):
        eventually(lambda: reasons(lab.node("n1"))[FAST] > start + 50, "BPF carries it")
        for node in lab.nodes:
            eventually(lambda node=node: bool(seconds_left(node)), "the connection is tracked")  # type: ignore[misc]  # mypy and defaults
            assert min(seconds_left(node)) > ESTABLISHED / 2


def test_what_endangers_connections_is_said(lab: Lab) -> None:
    node = lab.node("n1")
    node.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=0"])
    told = "nf_conntrack_tcp_loose is 0"
    eventually(lambda: told in node.daemon_log(), "the log warns", 70)
    assert told in flannel(node, "status")
    node.run(["sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=1"])


def test_a_value_that_somebody_sets_back_is_set_again_and_said(lab: Lab) -> None:
    node = lab.node("n2")
    name = "net.netfilter.nf_conntrack_tcp_ignore_invalid_rst"
    node.run(["sysctl", "-qw", f"{name}=0"])
    eventually(lambda: node.run(["sysctl", "-n", name]).stdout == "1\n", "it is set again", 70)
    assert f"{name}: 0 -> 1; somebody had set it back" in node.daemon_log()
