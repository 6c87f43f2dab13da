"""One table of packets: what goes in, where it ends, and why. Every reason has a row."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import Case
from tests.bpf.cases_from_peer import FROM_PEER
from tests.bpf.cases_from_pod import FROM_POD
from tests.bpf.cases_learning import LEARNING
from tests.bpf.cases_xdp import XDP
from tests.bpf.node import REDIRECT, Node

CASES = [*FROM_POD, *FROM_PEER, *LEARNING, *XDP]

UNREACHABLE = {
    Reason.GO_ON: "a helper's 'go on', never a packet's end",
    Reason.DROP_BROKEN: "needs a helper that fails after an earlier one of the same packet succeeded",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}: {case.name}")
def test_packet_ends_as_expected(case: Case, node_with: Callable[[abi.Config], Node]) -> None:
    node = node_with(case.config)
    ticket = case.setup(node) or case.ticket
    frame = bytes(case.frame)
    ran = node.run(case.program, frame, ticket=ticket, **case.skb)
    assert ran.reason == case.reason
    assert ran.verdict == case.expected_verdict
    assert bool(ran.ticket) == case.taught
    if ran.verdict != REDIRECT:
        assert ran.frame == frame, "what is left to the kernel must be whole"


def test_every_reason_has_a_row() -> None:
    assert {case.reason for case in CASES} - {None} == set(Reason) - UNREACHABLE.keys()
