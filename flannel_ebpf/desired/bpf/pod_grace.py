"""Pods' veths that are too new for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flannel_ebpf.base.model import PodPort


class Newcomers:
    """Holds programs back from a pod's veth for `grace` seconds after it appeared.

    CNI plugins that come after the bridge plugin may want the veth's qdiscs for themselves: `bandwidth` adds
    an `ingress` qdisc, which the kernel refuses beside our clsact, and the pod would not start. Afterwards
    the veth counts as shaped. What is there at the first look is not new. tcx stands in nobody's way and
    needs no grace.
    """

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._since: dict[int, float] | None = None
        self.due = 0.0
        """Seconds after the last `settled` at which the next veth is old enough; 0: none waits."""

    def settled(self, ports: Sequence[PodPort], now: float) -> list[PodPort]:
        """Return those of `ports` that may have programs; `now` in seconds of a clock that never jumps."""
        if self._since is None:
            self._since = {port.ifindex: -math.inf for port in ports}
        self._since = {port.ifindex: self._since.get(port.ifindex, now) for port in ports}
        waiting = {index: since + self._grace - now for index, since in self._since.items()}
        self.due = min((left for left in waiting.values() if left > 0), default=0.0)
        return [port for port in ports if waiting[port.ifindex] <= 0]
