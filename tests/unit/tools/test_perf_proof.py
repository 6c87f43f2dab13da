"""A figure counts only when the packets went the way its mode claims."""

from __future__ import annotations

from collections import Counter

import pytest
from perf.modes import DEFAULT, MODES, QUICK
from perf.proof import carried_by_bpf, device_packets, objection

NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:       0       0    0    0    0     0          0         0        0       0    0    0    0     0       0          0
flannel.1:     60      11    0    0    0     0          0         0     0      31    0    5    0     0       0          0
"""  # noqa: E501 - as the kernel prints it


@pytest.mark.parametrize(
    ("mode", "admitted", "path", "refused"),
    [
        ("ebpf-vxlan", 0.9, {"packets": 100, "FAST_VXLAN": 95, "cni0": 5}, ""),
        ("ebpf-vxlan", 0.9, {"packets": 100, "FAST_VXLAN": 50, "cni0": 50}, "BPF carried only 50%"),
        ("ebpf-vxlan", 0.25, {"packets": 100, "FAST_VXLAN": 40, "cni0": 60}, ""),
        ("ebpf-vxlan", 0.25, {"packets": 100, "FAST_VXLAN": 20, "cni0": 80}, "BPF carried only 20%"),
        ("ebpf-vxlan", 0.0, {"packets": 100, "cni0": 99}, ""),
        ("ebpf-vxlan-subnets", 0.25, {"packets": 100, "FAST_VXLAN": 50}, "BPF carried only 50%"),
        ("kernel-vxlan", 0.9, {"packets": 100, "cni0": 99, "flannel.1": 99}, ""),
        ("kernel-vxlan", 0.9, {"packets": 100, "cni0": 10}, "only 10% of the packets took the kernel"),
        ("udp-relay", 0.25, {"packets": 100, "cni0": 100}, ""),
        ("host", 0.9, {"packets": 100}, ""),
        ("host", 0.9, {"packets": 0}, "no packet was sent"),
    ],
)
def test_objection(mode: str, admitted: float, path: dict[str, int], refused: str) -> None:
    found = objection(Counter(path), MODES[mode], admitted=admitted)
    assert found.startswith(refused)
    assert bool(found) is bool(refused)


def test_share_counts_every_way_of_bpf() -> None:
    assert carried_by_bpf(Counter(packets=8, FAST_VXLAN=1, FAST_DIRECT=2, FAST_UDP=3, LEARN_NEW=2)) == 0.75
    assert carried_by_bpf(Counter()) == 0


def test_device_counters() -> None:
    assert device_packets(NET_DEV) == {"lo": 0, "flannel.1": 42}


def test_modes_have_labs_of_their_own() -> None:
    assert len({mode.spec.name for mode in MODES.values()}) == len(MODES)
    assert {*DEFAULT, *QUICK} <= set(MODES)
    assert MODES["kernel-vxlan"].spec.datapath == "kernel"
    assert MODES["host"].spec.start_daemons is False
