"""What `status` says of a daemon, and of the programs that it left behind."""

from __future__ import annotations

from typing import Any

import pytest

from flannel_ebpf.commands import status

HOOKS = [{"program": "fl_from_peer", "via": "tcx", "direction": "ingress", "device": "eth0"}]
REPORT: dict[str, Any] = {
    "running": False,
    "pid": 7,
    "handed_over": False,
    "datapath": {"why_not": ""},
}


@pytest.mark.parametrize(
    ("kernel", "daemon", "datapath"),
    [
        ({"hooks": HOOKS, "stand_aside_in": 200}, "know for 200 s, then they stand aside", "BPF by tcx"),
        ({"hooks": HOOKS, "stand_aside_in": None}, "know, for ever", "BPF by tcx"),
        ({"hooks": HOOKS, "stand_aside_in": 0}, "NOT running", "kernel: the programs stand aside"),
        ({"hooks": [], "stand_aside_in": 0}, "NOT running", "kernel"),
        ({"error": "needs root"}, "NOT running", "kernel"),
    ],
)
def test_programs_without_their_daemon_are_told(kernel: dict[str, Any], daemon: str, datapath: str) -> None:
    one = {**REPORT, "kernel": kernel}
    assert status._daemon(one).endswith(daemon)
    assert status._datapath(one).startswith(datapath)
    assert status._daemon({**one, "running": True}) == "running, process 7"
