"""What a check of `doctor` finds."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from flannel_ebpf.commands.diagnose.facts import Facts


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is not as it should be: what it is, what it causes, and what to do about it.

    `level`: a problem keeps packets from going, or from going fast; a note is worth knowing.
    """

    what: str
    effect: str
    do: str
    level: Literal["problem", "note"] = "problem"
    only_stopped: bool = False
    """Whether this says no more than that no daemon runs, which has an exit status of its own."""


Check = Callable[[Facts], Iterable[Finding]]
