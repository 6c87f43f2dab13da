"""One node with flannel-ebpf, one left as stock flanneld leaves it: they must not notice each other."""

from __future__ import annotations

import signal
from ipaddress import IPv4Network

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.counters import reasons
from flannel_ebpf.lab.stock import StockFlannel
from tests.netns.labs import MakeLab

STOCK_SUBNET = IPv4Network("10.1.200.0/24")


def mixed(make_lab: MakeLab, backend: str, datapath: str) -> Lab:
    """n1 runs flannel-ebpf, n2 is stock; one pod on each."""
    lab = make_lab(backend=backend, datapath=datapath, start_daemons=False, pods_per_node=1)
    n1, n2 = lab.nodes
    stock = StockFlannel(lab, n2, STOCK_SUBNET)
    stock.start()
    n1.start_daemon()
    lab.wait_ready([n1])
    stock.sync()
    lab.add_pods()
    if datapath == "ebpf":
        lab.wait_attached([n1])
    return lab


@pytest.mark.parametrize("backend", ["vxlan", "host-gw"])
@pytest.mark.parametrize("datapath", ["kernel", "ebpf"])
def test_pods_talk_both_ways(make_lab: MakeLab, backend: str, datapath: str) -> None:
    lab = mixed(make_lab, backend, datapath)
    for source, target in (("n1p1", "n2p1"), ("n2p1", "n1p1")):
        said = lab.pod(source).run(["ping", "-c40", "-i0.01", "-W10", str(lab.pod(target).ip)]).stdout
        assert " 0% packet loss" in said


def test_bpf_carries_what_a_stock_peer_sends_and_takes(make_lab: MakeLab) -> None:
    lab = mixed(make_lab, "vxlan", "ebpf")
    before = reasons(lab.node("n1"))
    lab.pod("n2p1").run(["ping", "-c200", "-i0.005", "-q", str(lab.pod("n1p1").ip)])
    delta = reasons(lab.node("n1")) - before
    assert delta[Hook.FROM_PEER, Reason.FAST_VXLAN] >= 150
    assert delta[Hook.FROM_POD, Reason.FAST_VXLAN] >= 150


def test_traffic_goes_on_after_the_daemons_are_killed(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="ebpf", pods_per_node=1)
    ping = lab.pod("n1p1").popen(["ping", "-c300", "-i0.01", "-q", str(lab.pod("n2p1").ip)])
    for node in lab.nodes:
        node.kill_daemon(signal.SIGKILL)
    assert " 0% packet loss" in ping.communicate(timeout=30)[0]
    before = reasons(lab.node("n1"))
    lab.pod("n1p1").run(["ping", "-c100", "-i0.005", "-q", str(lab.pod("n2p1").ip)])
    delta = reasons(lab.node("n1")) - before
    assert delta[Hook.FROM_POD, Reason.FAST_VXLAN] >= 60
