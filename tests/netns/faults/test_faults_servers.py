"""Faults of etcd's servers under whole nodes: pods do not notice any, and the next lease arrives."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.netns.etcd_cluster import FROZEN, LONG, OUTAGE
from tests.netns.faults.fault_lab import PREFIX, FaultLab, fault_lab
from tests.netns.labs import MakeLab
from tests.polls import eventually

NOTICED = 25.0
"""Seconds within which a frozen server is left for another."""
ANYTHING_ELSE = 12.0
"""Seconds to recover once etcd serves again: at most one pause of 5 s, and an election."""
TOKEN = 3
"""Seconds that etcd's tokens live."""


@pytest.fixture(scope="module")
def faults(make_shared_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultLab]:
    """Three members; the daemons have a user from the start, as before auth is turned on."""
    user = ("--etcd-username=flannel", "--etcd-password=secret")
    folder = tmp_path_factory.mktemp("servers")
    options = (f"--auth-token-ttl={TOKEN}",)
    with fault_lab(make_shared_lab, folder, *user, size=3, options=options) as made:
        yield made


@pytest.fixture(autouse=True)
def healthy(faults: FaultLab) -> None:
    """Each test begins with three members that serve."""
    for member in faults.cluster.members:
        if member.frozen:
            member.thaw()
    if any(member.process is None for member in faults.cluster.members):
        faults.cluster.start()


def test_kill_9_of_the_member_in_use(faults: FaultLab) -> None:
    with faults.under("member killed") as fault:
        since = time.monotonic()
        faults.used_by(faults.nodes[0]).kill()
        fault.recovery = faults.recovery(since, ANYTHING_ELSE)


def test_sigstop_of_the_member_in_use(faults: FaultLab) -> None:
    member = faults.used_by(faults.nodes[0])
    with faults.under(f"member frozen for {FROZEN:.0f} s") as fault:
        since = time.monotonic()
        member.freeze()
        fault.recovery = faults.recovery(since, NOTICED)
        time.sleep(max(0.0, since + FROZEN - time.monotonic()) if LONG else 0)
        member.thaw()


def test_rolling_restart(faults: FaultLab) -> None:
    with faults.under("rolling restart of 3 members") as fault:
        for member in faults.cluster.members:
            member.terminate()
            faults.cluster.start(member)
        fault.recovery = faults.recovery(time.monotonic(), ANYTHING_ELSE)


def test_full_stop(faults: FaultLab) -> None:
    one = faults.nodes[0]
    assert one.daemon
    threads = Path(f"/proc/{one.daemon.pid}/task")
    before = len(list(threads.iterdir()))
    with faults.under(f"whole cluster away for {OUTAGE:.0f} s") as fault:
        faults.cluster.kill()
        time.sleep(OUTAGE)
        assert len(list(threads.iterdir())) <= before + 2
        faults.cluster.start()
        fault.recovery = faults.recovery(time.monotonic(), ANYTHING_ELSE)
    assert len(faults.news(one).splitlines()) < 40, "no flood of complaints"


def test_compaction_while_disconnected(faults: FaultLab) -> None:
    """n1 misses a lease that comes, one that goes and the compaction of both; then it reads anew."""
    one, two = faults.nodes
    gone, come = faults.put_peer(150), "10.1.151.0/24"
    for node in faults.nodes:
        eventually(partial(faults.has_peer, node, gone), "the one that goes is there")
    cut = ["OUTPUT", "-p", "tcp", "-d", "192.168.64.254", "-j", "REJECT", "--reject-with", "tcp-reset"]
    with faults.under("compaction while n1 is cut off") as fault:
        one.run(["iptables", "-I", *cut])
        one.run(["ss", "-K", "dst", "192.168.64.254"])
        faults.said(one, "watch of etcd ended")
        new = faults.put_peer(151)
        assert str(new) == come
        faults.cluster.ctl("del", f"{PREFIX}/subnets/10.1.150.0-24")
        for number in range(20):
            faults.cluster.ctl("put", "/elsewhere", str(number))
        revision = faults.cluster.ctl("get", "/elsewhere", "--write-out=fields").partition('"Revision" : ')[2]
        faults.cluster.ctl("compact", revision.split()[0])
        eventually(lambda: faults.has_peer(two, new) and not faults.has_peer(two, gone), "n2 followed")
        assert not faults.has_peer(one, new)
        since = time.monotonic()
        one.run(["iptables", "-D", *cut])
        fault.recovery = faults.recovery(since, ANYTHING_ELSE)
        assert faults.has_peer(one, new)
        eventually(lambda: not faults.has_peer(one, gone), "n1 followed")
    faults.cluster.ctl("del", f"{PREFIX}/subnets/10.1.151.0-24")


def test_compaction_and_defragmentation_while_watching(faults: FaultLab) -> None:
    with faults.under("compaction and defragmentation") as fault:
        revision = (
            faults.cluster.ctl("get", "/", "--write-out=fields").partition('"Revision" : ')[2].split()[0]
        )
        faults.cluster.ctl("compact", "--physical", revision)
        faults.cluster.ctl("defrag")
        fault.recovery = faults.recovery(time.monotonic(), ANYTHING_ELSE)


def test_auth_turned_on_and_tokens_that_expire(faults: FaultLab) -> None:
    with faults.under("auth turned on, tokens expire") as fault:
        since = time.monotonic()
        faults.cluster.enable_auth(PREFIX)
        fault.recovery = faults.recovery(since, ANYTHING_ELSE)
        for _ in range(2):
            time.sleep(TOKEN + 1)
            faults.recovery(time.monotonic(), ANYTHING_ELSE)
    faults.cluster.ctl("auth", "disable")
    faults.cluster.login = ""
