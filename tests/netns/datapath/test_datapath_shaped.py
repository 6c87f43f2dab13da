"""Pods that somebody shapes or watches at the veth, which the short way passes by: they get no programs."""

from __future__ import annotations

import time

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.node import Node
from tests.netns import tcx_stranger
from tests.netns.kinds import BULK
from tests.netns.labs import MakeLab
from tests.netns.life import restart
from tests.netns.paths import programs, watch
from tests.netns.traffic import connection, delivered, pump, transfer
from tests.polls import eventually


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", pods_per_node=1)


@pytest.fixture(scope="module")
def subnets_lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", fastpath="subnets", pods_per_node=1)


def mbit_per_second(client: Host, server: Host, size: int) -> float:
    with connection(client, server) as (near, far):
        pump(near, far, 1 << 18)  # past the shaper's burst
        start = time.monotonic()
        pump(near, far, size)
        return size * 8 / 1e6 / (time.monotonic() - start)


@pytest.mark.parametrize("fastpath", ["flows", "subnets"])
def test_a_shaped_pod_keeps_its_rate(lab: Lab, subnets_lab: Lab, fastpath: str) -> None:
    """The bandwidth plugin's tbf on the host's end of the veth: what the pod gets is shaped."""
    lab = lab if fastpath == "flows" else subnets_lab
    node, other = lab.node("n1"), lab.node("n2")
    pod, far = node.pods[0], other.pods[0]
    carried_by_bpf(node, pod, far)
    node.run(f"tc qdisc add dev {pod.veth} root tbf rate 40mbit burst 64kb latency 50ms".split())
    eventually(lambda: programs(node, pod.veth) == 0, "taking the programs off")
    with watch(node) as seen:
        assert mbit_per_second(far, pod, 1 << 20) < 60
    assert seen.at(Hook.FROM_PEER, Reason.FAST_VXLAN) == 0
    node.run(["tc", "qdisc", "del", "dev", pod.veth, "root"])
    eventually(lambda: programs(node, pod.veth) == 2, "putting the programs back")
    carried_by_bpf(node, pod, far)


def carried_by_bpf(node: Node, pod: Host, far: Host) -> None:
    with watch(node) as seen:
        transfer(far, pod, BULK)
    assert seen.path == "BPF", seen


def bandwidth_plugin(node: Node, veth: str, rate: str) -> None:
    """Shape what the pod sends as CNI's bandwidth plugin does: to an ifb device, and its tbf."""
    for line in (
        "ip link add ifb1 type ifb",
        "ip link set ifb1 up",
        f"tc qdisc add dev {veth} ingress",
        f"tc filter add dev {veth} parent ffff: protocol all u32 match u32 0 0 "
        "flowid 1:1 action mirred egress redirect dev ifb1",
        f"tc qdisc add dev ifb1 root tbf rate {rate} burst 64kb latency 50ms",
    ):
        node.run(line.split())


def check_limit(node: Node, pod: Host, far: Host) -> None:
    """Check that the pod's limit of 40 Mbit/s holds, because the kernel carries what it sends."""
    with watch(node) as seen:
        assert mbit_per_second(pod, far, 1 << 20) < 60
    assert seen.at(Hook.FROM_POD, Reason.FAST_VXLAN) == 0


def test_the_bandwidth_plugins_ifb_keeps_its_rate_although_programs_stood_first(lab: Lab) -> None:
    node, far = lab.node("n1"), lab.node("n2").pods[0]
    pod = node.add_pod()
    try:
        eventually(lambda: programs(node, pod.veth) == 2, "attaching to the new pod")
        bandwidth_plugin(node, pod.veth, "40mbit")
        eventually(lambda: programs(node, pod.veth) == 0, "taking the programs off")
        check_limit(node, pod, far)
    finally:
        node.run(["ip", "link", "del", "ifb1"], check=False)
        node.remove_pod(pod)


def test_a_pod_with_a_strangers_tcx_program_is_left_to_the_kernel(lab: Lab) -> None:
    """A change at tcx makes no event: the next periodic pass sees it."""
    node, far = lab.node("n1"), lab.node("n2").pods[0]
    pod = node.pods[0]
    tool = tcx_stranger.COMMAND
    node.run([*tool, "attach", pod.veth, "egress"])
    eventually(lambda: programs(node, pod.veth) == 0, "taking the programs off")
    with watch(node) as seen:
        assert delivered(far, pod, 200) == 200
    assert seen.at(Hook.FROM_PEER, Reason.FAST_VXLAN) == 0
    node.run([*tool, "detach", pod.veth, "egress"])
    eventually(lambda: programs(node, pod.veth) == 2, "putting the programs back")


def test_the_bandwidth_plugins_ifb_keeps_its_rate_with_clsact(lab: Lab) -> None:
    """It comes soon after the veth, and its `ingress` qdisc cannot be where a clsact is."""
    node, far = lab.node("n1"), lab.node("n2").pods[0]
    restart(node, "--attach=clsact", "--pod-grace=3")
    early, pod = node.add_pod(), node.add_pod()
    try:
        bandwidth_plugin(node, pod.veth, "40mbit")
        eventually(lambda: programs(node, early.veth) == 2, "attaching to the pod without limits")
        assert programs(node, pod.veth) == 0
        check_limit(node, pod, far)
    finally:
        node.run(["ip", "link", "del", "ifb1"], check=False)
        node.remove_pod(pod)
        node.remove_pod(early)
        restart(node)
