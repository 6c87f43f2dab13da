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

from flannel_ebpf.base.family import Family
from flannel_ebpf.kernel.bpf import Program
from flannel_ebpf.lab import Lab
from tests.netns.labs import MakeLab
from tests.netns.life import PORT, RATE, Delivery, ready, stream
from tests.netns.lifecycle.foreign_changes import (
    CLSACT_FAULTS,
    FAULTS,
    FAULTS_V6,
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
    *(("dual", name, fault) for name, fault in FAULTS_V6.items()),
]


@dataclass(frozen=True)
class Site:
    """A lab, a stream in each direction between its nodes, and n1's state while nothing moves.

    `family` is what the faults are about, `other` a stream of the other family, if pods have it.
    """

    lab: Lab
    streams: tuple[Delivery, Delivery]
    other: Delivery | None
    right: str
    family: Family


@pytest.fixture(scope="module")
def site(make_shared_lab: MakeLab) -> Iterator[Callable[[str], Site]]:
    """Return the site of a kind: how programs are attached, or pods of both families; it is made once."""
    with ExitStack() as stack:

        @cache
        def site(kind: str) -> Site:
            flags = ("--ip-masq", "--xdp=generic", "--ip-blackhole-route")
            dual = kind == "dual"
            attach = () if dual else (f"--attach={kind}",)
            lab = make_shared_lab(
                datapath="ebpf", family="dual" if dual else "4", extra_up_args=(*flags, *attach)
            )
            one, two = lab.pod("n1p1"), lab.pod("n2p1")
            family = lab.spec.families[-1]
            there = stack.enter_context(stream(one, two, family=family))
            back = stack.enter_context(stream(two, one, family=family))
            other = stack.enter_context(stream(two, one, PORT + 1)) if dual else None
            return Site(lab, (there, back), other, quiet_state(lab.node("n1")), family)

        yield site


@pytest.mark.parametrize(
    ("kind", "fault"), [pytest.param(kind, fault, id=f"{kind}-{name}") for kind, name, fault in CASES]
)
def test_a_foreign_change_is_undone(site: Callable[[str], Site], kind: str, fault: Fault) -> None:
    here = site(kind)
    node, other = here.lab.nodes
    assert difference(here.right, state(node)) == "", "left over from the test before"
    command = filled_in(fault.command, node, other, here.family)
    before = [one.lost_yet() for one in here.streams]
    other_before = here.other.lost_yet() if here.other else 0
    node.run(["sh", "-c", command])
    begun = time.monotonic()
    eventually(lambda: state(node) == here.right, lambda: difference(here.right, state(node)), fault.within)
    took = time.monotonic() - begun
    lost = [one.lost_yet() - former for one, former in zip(here.streams, before, strict=True)]
    log.info("%s: healed in %.2f s, lost %d + %d", fault.command, took, *lost)
    assert sum(lost) <= 2 * RATE * (took + 0.1)
    if here.other and fault is not FAULTS_V6["device of IPv4 deleted"]:
        assert here.other.lost_yet() == other_before, "one family's fault costs the other nothing"


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
