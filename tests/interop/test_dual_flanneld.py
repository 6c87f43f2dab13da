"""Dual stack beside a real flanneld: leases alike, packets of both families, a node changes over and back."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.contract.enums import Hook
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.counters import reasons
from tests.interop.flanneld import Flanneld, started
from tests.interop.test_beside_flanneld import essence
from tests.netns.datapath.test_datapath_ipv6 import bulk, fast, ping, wrong_checksums
from tests.netns.labs import MakeLab
from tests.netns.life import flannel, ready, stream

BACKENDS = ("vxlan", "host-gw")


def mixed(make_lab: MakeLab, flanneld: Path, backend: str) -> tuple[Lab, Flanneld]:
    """Our daemon with programs on n1, flanneld on n2, a pod on each; uplinks compute checksums themselves."""
    lab = make_lab(
        backend=backend, family="dual", datapath="ebpf", nodes=2, start_daemons=False, pods_per_node=1
    )
    n1, n2 = lab.nodes
    (theirs,) = started(flanneld, [n2], "-ip-masq")
    n1.start_daemon(["--ip-masq"])
    lab.wait_ready()
    lab.add_pods()
    lab.wait_attached([n1])
    for node in lab.nodes:
        node.run(["ethtool", "-K", "eth0", "tx", "off"])
    return lab, theirs


@pytest.mark.parametrize("backend", BACKENDS)
def test_pods_of_both_families_talk_and_bpf_carries_it(
    make_lab: MakeLab, flanneld: Path, backend: str
) -> None:
    lab, theirs = mixed(make_lab, flanneld, backend)
    one, two = lab.pod("n1p1"), lab.pod("n2p1")
    for family in Family:
        before = reasons(lab.node("n1"), family)
        for source, target in ((one, two), (two, one)):
            ping(source, target, family)
            bulk(source, target, family)
        found = reasons(lab.node("n1"), family) - before
        assert fast(found, Hook.FROM_POD) > 100, dict(found)
        assert fast(found, Hook.FROM_PEER) > 100, dict(found)
    assert wrong_checksums(lab.nodes) == 0
    assert theirs.running


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_write_the_same_lease_and_subnet_env(make_lab: MakeLab, flanneld: Path, backend: str) -> None:
    lab, _ = mixed(make_lab, flanneld, backend)
    ours, theirs = (lab.leases()[node.subnet] for node in lab.nodes)
    assert list(ours) == list(theirs), "in Go's order"
    for name in ("BackendV6Data", "PublicIPv6"):
        assert (name in ours) == (name in theirs)
    same = {"PublicIPv6": "an address", "BackendV6Data": "data"}
    assert {**essence(ours), **same} == {**essence(theirs), **same}
    keys = [
        [line.partition("=")[0] for line in node.subnet_file.read_text().splitlines()] for node in lab.nodes
    ]
    assert keys[0] == keys[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_changes_over_from_flanneld_and_back(make_lab: MakeLab, flanneld: Path, backend: str) -> None:
    lab = make_lab(
        backend=backend, family="dual", datapath="ebpf", nodes=2, start_daemons=False, pods_per_node=1
    )
    n1, n2 = lab.nodes
    theirs, _ = started(flanneld, [n1, n2], "-ip-masq")
    lab.wait_ready()
    lab.add_pods()
    leases = lab.leases()
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1"), family=Family.V6) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1"), family=Family.V4) as back,
    ):
        theirs.stop()
        n1.start_daemon(["--ip-masq"])
        ready(n1)
        lab.wait_attached([n1])
        flannel(n1, "down")
        theirs.start()
    assert lab.leases() == leases
    assert (there.lost, back.lost) == (0, 0)
    for family in Family:
        ping(lab.pod("n1p1"), lab.pod("n2p1"), family)
