"""What somebody else deletes or alters on a running node is there again soon.

Each fault is made under a stream of UDP packets, and what healing took is logged (`--log-cli-level=info`).
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

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


@dataclass(frozen=True)
class Site:
    """A lab, a stream in each direction between its nodes, and n1's state while nothing moves."""

    lab: Lab
    streams: tuple[Delivery, Delivery]
    right: str


@pytest.fixture(scope="module")
def site(make_shared_lab: MakeLab) -> Iterator[Callable[[str], Site]]:
    """Return the site where programs are attached one way; it is made once."""
    with ExitStack() as stack:

        @cache
        def site(attach: str) -> Site:
            flags = ("--ip-masq", "--xdp=generic", "--ip-blackhole-route", f"--attach={attach}")
            lab = make_shared_lab(datapath="ebpf", extra_up_args=flags)
            one, two = lab.pod("n1p1"), lab.pod("n2p1")
            streams = stack.enter_context(stream(one, two)), stack.enter_context(stream(two, one))
            return Site(lab, streams, quiet_state(lab.node("n1")))

        yield site


@pytest.mark.parametrize(
    ("attach", "fault"), [pytest.param(way, fault, id=f"{way}-{name}") for way, name, fault in CASES]
)
def test_a_foreign_change_is_undone(site: Callable[[str], Site], attach: str, fault: Fault) -> None:
    here = site(attach)
    node, other = here.lab.nodes
    assert difference(here.right, state(node)) == "", "left over from the test before"
    command = filled_in(fault.command, node, other)
    before = [one.lost_yet() for one in here.streams]
    node.run(["sh", "-c", command])
    begun = time.monotonic()
    eventually(lambda: state(node) == here.right, lambda: difference(here.right, state(node)), fault.within)
    took = time.monotonic() - begun
    lost = [one.lost_yet() - former for one, former in zip(here.streams, before, strict=True)]
    log.info("%s: healed in %.2f s, lost %d + %d", fault.command, took, *lost)
    assert sum(lost) <= 2 * RATE * (took + 0.1)


def test_an_xdp_program_whose_pin_was_lost_while_no_daemon_ran_is_replaced(
    site: Callable[[str], Site],
) -> None:
    """It would go on judging by a map of peers that nobody writes any more."""
    node = site("auto").lab.node("n1")
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
