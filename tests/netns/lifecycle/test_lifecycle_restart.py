"""A daemon may die, come back, and come back as another one: packets do not notice."""

from __future__ import annotations

import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.kernel.programs.loader import OBJECTS
from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.counters import reasons
from tests.netns.labs import MakeLab
from tests.netns.life import chat, restart, stream
from tests.polls import eventually, unchanging

log = logging.getLogger(__name__)
FAST = (Hook.FROM_POD, Reason.FAST_VXLAN)
DROP_INVALID = ["iptables", "-I", "FORWARD", "-m", "conntrack", "--ctstate", "INVALID", "-j", "DROP"]
QUIET = 3.0
"""Seconds in which several passes run of themselves."""
LONG = bool(os.environ.get("FLANNEL_TEST_LONG"))


@pytest.fixture(scope="module", params=["flows", "subnets"] if LONG else ["flows"])
def lab(request: pytest.FixtureRequest, make_shared_lab: MakeLab) -> Lab:
    """Two nodes with kube-proxy's rule against packets that conntrack cannot place."""
    lab = make_shared_lab(datapath="ebpf", fastpath=request.param, extra_up_args=("--revalidate=1",))
    for node in lab.nodes:
        node.run(DROP_INVALID)
    return lab


@pytest.fixture(autouse=True)
def settled(lab: Lab) -> None:
    """Each test begins with both daemons as the lab started them."""
    for node in lab.nodes:
        if node.daemon is None:
            node.start_daemon()
    lab.wait_attached()


def newest(folder: Path, kind: str) -> set[str]:
    return {path.name for path in folder.rglob(f"{kind}-*")}


def attached(node: Node) -> set[int]:
    """The programs that stand on the node's hooks, by the kernel's id."""
    return {hook.prog_id for hook in node.hooks()}


def test_a_killed_daemon_costs_no_packet_and_its_successor_changes_nothing(lab: Lab) -> None:
    node = lab.node("n1")
    before, carried = attached(node), reasons(node)[FAST]
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as back,
        chat(lab.pod("n2p2"), lab.pod("n1p2")),
    ):
        words = restart(node, kill=True)
    assert reasons(node)[FAST] - carried > 0.8 * back.sent, "BPF carried the stream"
    assert "changes made" not in words
    assert attached(node) == before
    assert there.sent > 500
    assert back.sent > 500
    assert (there.lost, back.lost) == (0, 0)


def test_a_restart_without_a_change_writes_nothing_at_all(lab: Lab) -> None:
    """Seen from outside: no notice of a change by the kernel, and the same pins."""
    node = lab.node("n1")
    links = node.popen(["ip", "monitor", "link"])
    rest = node.popen(["ip", "-4", "monitor", "address", "route", "neigh"])  # the kernel's IPv6 never rests
    filters = node.popen(["tc", "monitor"])
    rules = node.popen(["nft", "monitor"])
    marks = {path: path.stat().st_ino for path in node.pin_root.rglob("*")}
    words = restart(node)
    for monitor in (links, rest, filters, rules):
        monitor.terminate()
    noticed = [
        line
        for monitor in (links, rest, filters, rules)
        for line in monitor.communicate()[0].splitlines()
        if "cni0" not in line
        and "REACHABLE" not in line
        and "STALE" not in line
        and "PROBE" not in line
        and "DELAY" not in line
        and "FAILED" not in line
    ]
    assert noticed == []
    assert "changes made" not in words
    assert {path: path.stat().st_ino for path in node.pin_root.rglob("*")} == marks


STRANGE = {
    "10.9.7.0-24": {"PublicIP": "192.168.64.50", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:50"},
    "10.1.240.0-24": {"PublicIP": "192.168.64.51", "BackendType": "vxlan", "VtepMAC": "01:00:5e:00:00:01"},
    "10.1.241.0-24": {"PublicIP": "192.168.64.52", "BackendType": "vxlan", "VtepMAC": "00:00:00:00:00:00"},
    "10.1.242.0-24": {"PublicIP": "192.168.64.53", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:53"},
    "10.1.243.0-24": {"PublicIP": "192.168.64.54", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:53"},
    "10.1.244.0-24": {"PublicIP": "192.168.64.53", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:55"},
    "10.1.0.0-20": {"PublicIP": "192.168.64.56", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:56"},
    "10.1.246.0-24": {"PublicIP": "255.255.255.255", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:57"},
    "10.1.247.0-24": {"PublicIP": "127.0.0.1", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:58"},
    "10.1.248.0-24": {"PublicIP": "224.0.0.5", "BackendType": "vxlan", "VtepMAC": "02:00:00:00:00:59"},
}
"""Outside the network; addresses of no device; one MAC or public IP for two; overlapping; odd addresses."""


def test_strange_leases_are_settled_once_and_then_cause_no_work(lab: Lab) -> None:
    """What can never be as wanted must not be written on every pass."""
    prefix = f"{lab.spec.etcd_prefix}/subnets"
    node = lab.node("n1")
    for name, fields in STRANGE.items():
        data = {"VNI": 1, "VtepMAC": fields["VtepMAC"]}
        value = {"PublicIP": fields["PublicIP"], "BackendType": fields["BackendType"], "BackendData": data}
        lab.etcdctl("put", f"{prefix}/{name}", json.dumps(value))
    eventually(lambda: "10.1.242.0/24" in node.run(["ip", "route"]).stdout, "the usable ones have routes")

    def changes() -> int:
        return node.daemon_log().count("changes made")

    unchanging(changes, "the number of changes made", QUIET)
    for name in STRANGE:
        lab.etcdctl("del", f"{prefix}/{name}")
    eventually(lambda: "10.1.242.0/24" not in node.run(["ip", "route"]).stdout, "they are gone")


CHANGES = {
    "an upgraded object": (),
    "other constants": ("--revalidate=3",),
    "a changed map layout": ("--flow-entries=4096",),
    "the other fast path": ("--fastpath=subnets",),
    "no BPF": ("--datapath=kernel",),
    "no fast path": ("--fastpath=off",),
    "XDP": ("--xdp=generic",),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_daemon_takes_over_without_a_lost_packet(lab: Lab, change: str, tmp_path: Path) -> None:
    node = lab.node("n1")
    arguments = list(CHANGES[change])
    if change == "the other fast path" and lab.spec.fastpath == "subnets":
        arguments = ["--fastpath=flows"]
    if change == "an upgraded object":
        shutil.copytree(OBJECTS, tmp_path / "objects")
        with (tmp_path / "objects" / "datapath.bpf.o").open("ab") as image:
            image.write(b"a later build")
        arguments = [f"--bpf-objects={tmp_path / 'objects'}"]
    before = attached(node)
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as back,
        chat(lab.pod("n2p2"), lab.pod("n1p2")) as talk,
    ):
        restart(node, *arguments)
        eventually(lambda: change == "XDP" or not before & attached(node), "other programs, or none")
        restart(node)
        lab.wait_attached([node])
    log.info("%s: there %s, back %s, %s", change, there, back, talk)
    assert (there.lost, back.lost) == (0, 0), (there, back)
    kinds = ("maps", "progs")
    assert [len(newest(node.pin_root, kind)) for kind in kinds] == [1, 1], "what is not used any more is gone"


@pytest.mark.parametrize("kill", [False, True])
def test_the_way_of_attaching_changes_and_back_without_a_lost_packet(lab: Lab, kill: bool) -> None:
    """clsact is also what a version without tcx left."""
    node = lab.node("n1")
    for device in {
        hook.device for hook in node.hooks()
    }:  # adding one stops the device's queue for an instant
        node.run(["tc", "qdisc", "replace", "dev", device, "clsact"])
    stood = node.hooks()
    assert {hook.via for hook in stood} == {"tcx"}
    carried = reasons(node)[FAST]
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as back,
        chat(lab.pod("n2p2"), lab.pod("n1p2")),
    ):
        for way in ("clsact", "tcx", "clsact"):
            restart(node, f"--attach={way}", kill=kill)
            assert node.hooks() == sorted(replace(hook, via=way) for hook in stood)
        restart(node, kill=kill)
        assert node.hooks() == stood
    assert (there.lost, back.lost) == (0, 0), (there, back)
    assert reasons(node)[FAST] - carried > 0.8 * back.sent, "BPF carried the stream"
