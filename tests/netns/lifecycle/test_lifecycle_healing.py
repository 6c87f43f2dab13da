"""What somebody else deletes or alters on a running node is there again soon.

Each fault is made under a stream of UDP packets, and what healing took is logged (`--log-cli-level=info`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator

import pytest

from flannel_ebpf.kernel.bpf import Program
from flannel_ebpf.lab import Lab
from tests.netns.labs import MakeLab
from tests.netns.life import RATE, Delivery, ready, stream
from tests.netns.lifecycle.foreign_changes import (
    CLSACT_FAULTS,
    FAULTS,
    Fault,
    difference,
    filled_in,
    quiet_state,
    state,
)
from tests.polls import eventually

log = logging.getLogger(__name__)


CASES = [
    *(("auto", name, fault) for name, fault in FAULTS.items()),
    *(("clsact", name, fault) for name, fault in CLSACT_FAULTS.items()),
]


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest, make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(
        datapath="ebpf",
        extra_up_args=("--ip-masq", "--xdp=generic", "--ip-blackhole-route", f"--attach={request.param}"),
    )


@pytest.fixture(scope="module")
def streams(lab: Lab) -> Iterator[tuple[Delivery, Delivery]]:
    """One stream in each direction, for all tests of this file."""
    with (
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as there,
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as back,
    ):
        yield there, back


@pytest.fixture(scope="module")
def right(lab: Lab, streams: tuple[Delivery, Delivery]) -> str:
    """The node's state once nothing moves any more."""
    return quiet_state(lab.node("n1"))


@pytest.mark.parametrize(
    ("lab", "fault"),
    [pytest.param(way, fault, id=f"{way}-{name}") for way, name, fault in CASES],
    indirect=["lab"],
)
def test_a_foreign_change_is_undone(
    lab: Lab, streams: tuple[Delivery, Delivery], right: str, fault: Fault
) -> None:
    node, other = lab.nodes
    assert state(node).splitlines() == right.splitlines(), "left over from the test before"
    command = filled_in(fault.command, node, other)
    before = [one.lost_yet() for one in streams]
    node.run(["sh", "-c", command])
    begun = time.monotonic()
    eventually(lambda: state(node) == right, lambda: difference(right, state(node)), fault.within)
    took = time.monotonic() - begun
    lost = [one.lost_yet() - former for one, former in zip(streams, before, strict=True)]
    log.info("%s: healed in %.2f s, lost %d + %d", fault.command, took, *lost)
    assert sum(lost) <= 2 * RATE * (took + 0.1)


@pytest.mark.parametrize("lab", ["auto"], indirect=True)
def test_an_xdp_program_whose_pin_was_lost_while_no_daemon_ran_is_replaced(lab: Lab) -> None:
    """It would go on judging by a map of peers that nobody writes any more."""
    node = lab.node("n1")
    node.kill_daemon()
    node.run(["sh", "-c", f"rm -r {node.pin_root}/*"])
    mark = len(node.daemon_log())
    node.start_daemon()
    ready(node, mark)
    assert "refuses XDP" not in node.daemon_log()[mark:]

    def program() -> int:
        shown = json.loads(node.run(["ip", "-json", "-details", "link", "show", "dev", "eth0"]).stdout)[0]
        return int(shown["xdp"]["prog"]["id"])

    [pin] = node.pin_root.rglob("fl_xdp")
    with Program.open(pin) as pinned:
        eventually(lambda: program() == pinned.info().id, "the program with the new maps is attached")
