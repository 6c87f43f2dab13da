"""Without a kernel feature everything arrives, by the path that is left, and status says so."""

from __future__ import annotations

import pytest

from flannel_ebpf.contract.enums import Cap, Hook, Reason
from flannel_ebpf.contract.features import NAMES, WITHOUT, names
from flannel_ebpf.kernel.programs.probe import probe
from flannel_ebpf.lab import Lab
from tests.netns import kinds
from tests.netns.kinds import Pair
from tests.netns.labs import MakeLab
from tests.netns.life import flannel, restart
from tests.netns.paths import FAST

SOME = 4 << 20


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", pods_per_node=1)


@pytest.mark.parametrize("feature", NAMES)
def test_everything_arrives_without_a_feature(lab: Lab, feature: str) -> None:
    for node in lab.nodes:
        restart(node, f"--without={feature}")
    pair = Pair(lab, lab.node("n1"), lab.node("n2"))
    for node in lab.nodes:
        status = flannel(node, "status")
        lacking = [f"{name}: {WITHOUT[NAMES[name]]}" for name in names(~probe() | NAMES[feature])]
        said = [line.split(maxsplit=1) for line in status.splitlines()]
        assert [words[1] for words in said if words[0] == "lacks"] == lacking
    for kind in (kinds.small_udp, lambda pair: kinds.tcp_of(pair, SOME), kinds.udp_gso, kinds.icmp_echo):
        sender, receiver = kind(pair)
        assert sender.any(Reason.GO_ON) == receiver.any(Reason.GO_ON) == 0
        for seen in (sender, receiver):
            assert seen.any(Reason.DROP_BROKEN) == 0
        if NAMES[feature] is Cap.REDIRECT_NEIGH:
            assert not any(sender.at(Hook.FROM_POD, reason) for reason in FAST)
            assert sender.any(Reason.HELPER) > 0
        elif kind is kinds.small_udp:
            assert min(sender.share, receiver.share) > 0.8
