"""A rule of nftables while its expressions are taken: registers, steps so far, and what it refers to."""

from __future__ import annotations

from typing import Protocol

from flannel_ebpf.desired.proof.packets import Version
from flannel_ebpf.desired.proof.ranges import Ranges
from flannel_ebpf.desired.proof.rules import Step, Touch, Verdict
from flannel_ebpf.kernel.firewall.decode.loads import NEVER, UNKNOWN_LOAD, Load
from flannel_ebpf.kernel.firewall.decode.sets import Contents


class Surroundings(Protocol):
    """What a rule refers to by name or number."""

    def contents(self, name: str) -> Contents:
        """Return what a set of the rule's table holds."""

    def device(self, index: int) -> Ranges | None:
        """Return a device's name by its ifindex, None when there is none now."""


class Registers:
    """A rule as far as its expressions were taken.

    `read` and `store` know registers by their place, in units of four octets.
    """

    def __init__(self, version: Version, around: Surroundings) -> None:
        self.version: Version = version
        self.around = around
        self.steps: list[Step] = []
        self.verdict: Verdict = None
        self.ended = False
        self.comment = ""
        self._content: dict[int, Load] = {}

    def read(self, place: int) -> Load:
        """Return what is in a register; nothing known if no expression that we know wrote it."""
        return self._content.get(place, UNKNOWN_LOAD)

    def store(self, place: int, load: Load) -> None:
        """Have this in a register."""
        self._content[place] = load

    def test(self, *steps: Step) -> None:
        """Take tests; one that no packet passes ends the rule, and what was done before it stays."""
        for step in steps:
            if step is NEVER:
                self.ended = True
                return
            self.steps.append(step)

    def end(self, verdict: Verdict) -> None:
        """Take a verdict, which is the last that happens."""
        self.verdict, self.ended = verdict, True

    def touch(self, what: str) -> None:
        """Take an expression that we do not know: it may write any register."""
        self.steps.append(Touch(what))
        self._content.clear()
