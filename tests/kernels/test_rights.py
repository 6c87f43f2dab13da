"""A daemon with little locked memory, to which kernels before 5.11 charge BPF objects."""

from __future__ import annotations

import os

import pytest

from flannel_ebpf.lab import Lab, Node, processes
from tests.kernels.test_nodes import SLOW, pair_of
from tests.netns import kinds
from tests.netns.labs import MakeLab
from tests.netns.life import flannel, stream
from tests.polls import eventually, unchanging

LITTLE = ["prlimit", f"--memlock={64 << 10}:{64 << 10}"]
WITHOUT = ["setpriv", "--bounding-set=-sys_resource", "--inh-caps=-sys_resource"]
CHARGED = tuple(int(part) for part in os.uname().release.split(".")[:2]) < (5, 11)


def begin(node: Node, *prefix: str) -> None:
    """Start the daemon with these rights, and wait until it is ready."""
    mark = len(node.daemon_log())
    command = [*prefix, *node.daemon_command()]
    processes.spawn(node.ns, command, log=node.log, pidfile=node.pidfile)
    eventually(lambda: "ready: subnet" in node.daemon_log()[mark:], node.log_tail, SLOW)


def attached(node: Node) -> set[int]:
    """The programs that stand on the node's hooks, by the kernel's id."""
    return {hook.prog_id for hook in node.hooks()}


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    lab = make_shared_lab(pods_per_node=1, start_daemons=False)
    begin(lab.node("n1"), *LITTLE)
    begin(lab.node("n2"), *LITTLE)
    lab.add_pods()
    lab.wait_attached(deadline=SLOW)
    return lab


def test_little_memory_is_raised_and_a_restart_finds_its_programs(lab: Lab) -> None:
    """The maps of the first daemon exceed the limit already when the second one starts."""
    node = lab.node("n1")
    stood = unchanging(lambda: attached(node), "what is attached")
    assert stood
    with stream(lab.pod("n2p1"), lab.pod("n1p1"), rate=200) as there:
        node.kill_daemon()
        mark = len(node.daemon_log())
        begin(node, *LITTLE)
        assert "changes made" not in node.daemon_log()[mark:]
    assert attached(node) == stood
    assert there.lost == 0
    assert all(seen.fast for seen in kinds.small_udp(pair_of(lab)))


def test_an_upgrade_with_other_programs_costs_no_packet(lab: Lab) -> None:
    """A version whose programs differ, as another constant makes them: both generations are in memory."""
    node = lab.node("n1")
    stood = attached(node)
    with stream(lab.pod("n2p1"), lab.pod("n1p1"), rate=200) as there:
        node.kill_daemon()
        begin(node, "env", "FLANNELD_SOURCE_CHECK=count", *LITTLE)
        eventually(lambda: not stood & attached(node), "the new programs stand", 60)
    assert there.lost == 0


def test_without_the_right_to_more_it_runs_or_says_why(lab: Lab) -> None:
    """Where memory is charged BPF is refused, in words that help; the kernel path carries everything."""
    node = lab.node("n1")
    node.stop_daemon()
    flannel(node, "down", "--purge")
    begin(node, *LITTLE, *WITHOUT)
    status = flannel(node, "status")
    if CHARGED:
        assert "CAP_SYS_RESOURCE, or more locked memory than 65536 bytes" in status
    else:
        assert "BPF by" in status
    seen = kinds.small_udp(pair_of(lab))
    assert bool(seen[0].fast) == (not CHARGED)
