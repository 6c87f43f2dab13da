"""How it is measured: all modes stand at once, and take turns within every round."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab import Lab
from perf import proof, services
from perf.ends import Ends
from perf.modes import Mode
from perf.results import Series, Table
from perf.workloads import Workload, start_servers

WARM_UP_ROUND = -1
"""One workload only, not counted: neighbours known, pods learned, code in memory."""


def order(modes: Sequence[Mode], number: int) -> list[Mode]:
    """Return the modes in the order of a round: each starts once, and the direction alternates."""
    start = number % len(modes)
    turned = [*modes[start:], *modes[:start]]
    return turned[::-1] if number % 2 else turned


@contextmanager
def standing(modes: Sequence[Mode], folder: Path, progress: Progress) -> Iterator[dict[str, Ends]]:
    """All labs up with their servers, by the mode's name; at the end everything is removed."""
    with ExitStack() as stack:
        found = {}
        for mode in modes:
            progress.show(f"building {mode.name}")
            lab = stack.enter_context(Lab.up(mode.spec))
            if mode.services:
                text = services.rules(lab.spec.network, mode.services)
                for node in lab.nodes:
                    node.run(["iptables-nft-restore", "--noflush"], stdin=text)
            found[mode.name] = stack.enter_context(Ends(lab, mode))
            start_servers(found[mode.name], folder)
        yield found


@contextmanager
def quiet(ends: Collection[Ends]) -> Iterator[None]:
    """Stop etcd and the daemons during the block. Packets need neither, and there are three for each mode.

    Only daemons that vouch for free pods go on: their silence would end it.
    """
    processes = [one.lab.etcd.process for one in ends]
    processes += [node.daemon for one in ends if one.mode.fastpath != "auto" for node in one.lab.nodes]
    present = [process for process in processes if process]
    try:
        for process in present:
            process.signal(signal.SIGSTOP)
        yield
    finally:
        for process in present:
            process.signal(signal.SIGCONT)


@dataclass
class Method:
    """A run: `rounds` rounds of `seconds` for each mode and workload."""

    modes: Sequence[Mode]
    workloads: Sequence[Workload]
    rounds: int
    seconds: int

    def run(self, ends: dict[str, Ends], progress: Progress) -> Table:
        """Measure everything. A measurement that fails, or went another way than claimed, is refused."""
        table = {
            (mode.name, metric): Series(mode.name, metric, unit, workload.lower)
            for workload in self.workloads
            for metric, unit in workload.units.items()
            for mode in self.modes
        }
        progress.total = (self.rounds * len(self.workloads) + 1) * len(self.modes)
        self._round(WARM_UP_ROUND, ends, table, progress)
        with quiet(ends.values()):
            for number in range(self.rounds):
                self._round(number, ends, table, progress)
        return table

    def _round(self, number: int, ends: dict[str, Ends], table: Table, progress: Progress) -> None:
        label = "warm-up" if number == WARM_UP_ROUND else f"round {number + 1}/{self.rounds}"
        for workload in self.workloads[:1] if number == WARM_UP_ROUND else self.workloads:
            for mode in order(self.modes, number):
                progress.step(f"{label}  {workload.name}  {mode.name}")
                self._measure(number, workload, mode, ends[mode.name], table)

    def _measure(self, number: int, workload: Workload, mode: Mode, ends: Ends, table: Table) -> None:
        ends.mark()
        try:
            figures = workload.run(ends, self.seconds)
            path = ends.path()
            why = proof.objection(path, mode, admitted=workload.admitted)
        except LabError as error:
            figures, path, why = {}, proof.Path(), str(error)
        if number == WARM_UP_ROUND:
            return
        for metric in workload.units:
            series = table[mode.name, metric]
            series.path.update(path)
            if why:
                series.refused.append(why)
            else:
                series.rounds[number] = figures[metric]


class Progress:
    """A bar on a terminal; nothing when standard error is something else."""

    WIDTH = 24

    def __init__(self) -> None:
        self.total = 0
        self._done = 0
        self._start = time.monotonic()
        self._tty = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Say what happens now."""
        if self._tty:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)

    def step(self, text: str) -> None:
        """Say what the next of `total` steps is."""
        if self._done == 0:
            self._start = time.monotonic()
        share = self._done / self.total
        left = (time.monotonic() - self._start) / share * (1 - share) if share else 0.0
        bar = ("█" * round(share * self.WIDTH)).ljust(self.WIDTH, "░")
        self.show(f"{bar} {share:4.0%}  {int(left) // 60}:{int(left) % 60:02d} left  {text}")
        self._done += 1

    def clear(self) -> None:
        """Take the bar away."""
        self.show("")
