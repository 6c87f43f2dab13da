"""Which pass the loop does: a short one for leases alone, a whole one for whatever speaks against that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from flannel_ebpf.agent.loop import Loop, Wake
from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.model import Skipped
from flannel_ebpf.leases.cluster import View
from tests.samples import lease

LEASE = lease("10.1.7.0/24", "192.168.64.7")
GOOD = View((LEASE,), may_remove=True)


@dataclass
class Parts:
    """The edges of a loop; `follow` is what a short pass answers."""

    follow: Callable[[], Outcome | None] = Outcome
    view: View = GOOD
    shorts: int = 0
    firewall: Any = field(default_factory=lambda: SimpleNamespace(lifetime=60.0))

    def __post_init__(self) -> None:
        self.cluster = self
        self.report = SimpleNamespace(write=lambda *_: None)
        self.keeper = SimpleNamespace(lease=LEASE)
        self.relay = SimpleNamespace(run=lambda *_, **__: None)
        self.reconciler = SimpleNamespace(accelerates=True, follow=self._follow)

    def _follow(self, _leases: object) -> Outcome | None:
        self.shorts += 1
        return self.follow()


class Short(Loop):
    """Counts whole passes instead of doing them; `delay` is when the next is due."""

    wholes = 0
    delay = 60.0

    def _attend(self, view: View) -> float:
        self.wholes += 1
        self._close(view, Outcome())
        return self.delay


def refuse() -> None:
    raise KernelError("no")


def passes(parts: Parts, *events: Callable[[Wake, Parts], None], delay: float = 60.0) -> tuple[int, int]:
    """Return how many whole and short passes follow the first one, with these events."""
    wake, stop, left = Wake(), threading.Event(), list(events)
    loop = Short(
        SimpleNamespace(subnet_file="subnet.env"),  # type: ignore[arg-type]  # as far as a short pass looks
        SimpleNamespace(subnets=LEASE.subnets, config=None),  # type: ignore[arg-type]
        parts,  # type: ignore[arg-type]
    )
    loop.delay = delay

    def wait(_seconds: float) -> None:
        if left:
            left.pop(0)(wake, parts)
        else:
            stop.set()

    wake.wait = wait  # type: ignore[method-assign]
    loop.run(stop, wake)
    return loop.wholes - 1, parts.shorts


def leases(wake: Wake, _parts: Parts) -> None:
    wake.for_leases()


def kernel(wake: Wake, _parts: Parts) -> None:
    wake.for_all()


def doubt(wake: Wake, parts: Parts) -> None:
    parts.view = replace(GOOD, may_remove=False, doubt="etcd was wiped")
    wake.for_leases()


def poison(wake: Wake, parts: Parts) -> None:
    parts.view = replace(GOOD, skipped=(Skipped("/subnets/x", "no subnet"),))
    wake.for_leases()


def test_leases_alone_take_a_short_pass() -> None:
    assert passes(Parts(), leases, leases) == (0, 2)


@pytest.mark.parametrize("event", [kernel, doubt, poison])
def test_anything_else_takes_a_whole_one(event: Callable[[Wake, Parts], None]) -> None:
    assert passes(Parts(), event) == (1, 0)


def test_a_kernel_event_is_not_lost_among_those_of_leases() -> None:
    def both(wake: Wake, parts: Parts) -> None:
        kernel(wake, parts)
        leases(wake, parts)

    assert passes(Parts(), both, leases) == (1, 1)


@pytest.mark.parametrize("answer", [lambda: None, refuse])
def test_a_short_pass_that_fails_is_followed_by_a_whole_one_at_once(answer: Any) -> None:
    assert passes(Parts(answer), leases) == (1, 1)


def test_leases_do_not_put_off_the_whole_pass_that_is_due() -> None:
    assert passes(Parts(), leases, leases, delay=0.0) == (2, 0)


def test_doubt_that_ends_takes_a_whole_pass_when_the_reconciler_says_so() -> None:
    def believed(wake: Wake, parts: Parts) -> None:
        parts.view = GOOD
        parts.follow = lambda: None  # a pass that may not delete leaves nothing to start from
        wake.for_leases()

    assert passes(Parts(), doubt, believed) == (2, 1)
