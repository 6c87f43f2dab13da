"""When the next pass is due: soon after a failure, rarely where passes are dear."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flannel_ebpf.agent import loop
from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.agent.wake import Stop, Wake
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.plan import Failure, Put
from tests.unit.agent.test_loop import NODE, OWN, PARTS, Parts, Still

OWN_FAILED = Outcome(failures=[Failure(Put(OWN[0]), KernelError("no"))])
PART_FAILED = Outcome(failures=[Failure(Put(PARTS[0]), KernelError("no"))])


class Clock:
    """The time, and the CPU seconds that one pass takes; both for a test to set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.now, self.cost = 1000.0, 0.0
        self._cpu = 0.0
        self.options = Options(subnet_file=folder / "subnet.env")
        monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        monkeypatch.setattr(loop.time, "monotonic", lambda: self.now)
        monkeypatch.setattr(loop.time, "thread_time", self._thread_time)

    def _thread_time(self) -> float:
        self._cpu += self.cost  # asked before a pass and after it
        return self._cpu

    def waits(self, *outcomes: Outcome) -> list[float]:
        """Let a loop do these passes, each as soon as it is due; return the seconds waited after each."""
        left, wake, stop, seconds = list(outcomes), Wake(), Stop(), list[float]()
        parts = Parts(whole=lambda: left.pop(0))

        def wait(due: float) -> None:
            seconds.append(round(due, 3))
            self.now += due
            if not left:
                stop.set()

        wake.wait = wait  # type: ignore[method-assign]
        Still(self.options, NODE, parts).run(stop, wake)  # type: ignore[arg-type]  # of edges' shape
        return seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Clock:
    return Clock(monkeypatch, tmp_path)


def test_passes_that_cost_nothing_come_every_second(clock: Clock) -> None:
    assert clock.waits(Outcome(), Outcome(), Outcome()) == [1.0, 1.0, 1.0]


def test_dear_passes_come_rarely_and_each_minute_at_least(clock: Clock) -> None:
    clock.cost = 0.03
    assert clock.waits(Outcome(), Outcome()) == [pytest.approx(10, rel=0.01)] * 2
    clock.cost = 0.3
    assert clock.waits(Outcome()) == [60.0]


@pytest.mark.parametrize(("silence", "seconds"), [(30, 10.0), (300, 60.0), (0, 60.0)])
def test_programs_that_would_stand_aside_hear_of_the_daemon_in_time(
    clock: Clock, silence: float, seconds: float
) -> None:
    clock.cost, clock.options = 0.3, replace(clock.options, stand_aside=silence)
    assert clock.waits(Outcome()) == [seconds]


def test_what_failed_is_tried_again_ever_more_rarely_and_then_as_if_nothing_had_been(clock: Clock) -> None:
    outcomes = [OWN_FAILED] * 8 + [Outcome(), OWN_FAILED]
    assert clock.waits(*outcomes) == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0, 1.0, 0.2]


def test_a_failure_of_a_part_does_not_take_the_cpu(clock: Clock) -> None:
    clock.cost = 0.3
    assert clock.waits(PART_FAILED) == [pytest.approx(10, rel=0.01)]
    assert clock.waits(OWN_FAILED) == [0.2]


def test_a_pass_that_waits_for_something_says_when(clock: Clock) -> None:
    assert clock.waits(Outcome(again=0.3), Outcome(again=5.0)) == [0.3, 1.0]
