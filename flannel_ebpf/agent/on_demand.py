"""Which peers have kernel objects of their own, round by round, by the rules of desired/demand.py."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from flannel_ebpf.agent.bpf_side import BpfSide
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.options import PeersChoice
from flannel_ebpf.desired import backends, demand
from flannel_ebpf.desired.backends import Node, Peer
from flannel_ebpf.desired.demand import Used
from flannel_ebpf.desired.objects import Filter
from flannel_ebpf.desired.plan import Failure
from flannel_ebpf.kernel.seen import Seen

AGAIN = 60.0
"""Seconds for which all peers have objects after the way to peers without could not be made."""


class OnDemand:
    """Decides, round by round, whether peers come on demand and which are in use.

    `opening`: the way to peers without objects is being made, so nothing that leads to a peer may be deleted
    yet. `warning` says why `--peers=on-demand` is not done.
    """

    def __init__(self, choice: PeersChoice, bpf: BpfSide) -> None:
        self._choice: PeersChoice = choice
        self._bpf = bpf
        self._used: Used | None = None
        self._refused = ""
        self._refused_until = 0.0
        self.opening = False
        self.warning = ""

    def used(self, node: Node, peers: Sequence[Peer]) -> Used | None:
        """Return the peers with objects in this round, None for all; asked once the programs are loaded."""
        now = time.monotonic()
        self.warning = ""
        if not demand.wanted(self._choice, len(peers), before=self._used is not None):
            self._used, self.opening = None, False
            return None
        why = demand.obstacle(node, self._bpf.caps, programs=self._bpf.knows(len(peers)))
        refused = "" if why or now >= self._refused_until else self._refused
        if refused or (why and self._choice == "on-demand"):
            self.warning = f"--peers={self._choice}: every peer has kernel objects, because {why or refused}"
        if why or refused:
            self._used, self.opening = None, False
            return None
        self.opening |= self._used is None
        self._used = demand.still_used(self._used or {}, self._bpf.sent(), now)
        return self._used

    def asked(self) -> Used | None:
        """Return the peers with objects if there are more now, because packets were sent to them."""
        if self._used is None or self.opening:
            return None
        packets = self._bpf.asked()
        used = demand.asked(self._used, packets, time.monotonic()) if packets else self._used
        if used.keys() == self._used.keys():
            return None
        self._used = used
        return used

    @property
    def last(self) -> Used | None:
        """What `used` or `asked` returned last."""
        return self._used

    def done(self, node: Node, seen: Seen, failures: Iterable[Failure]) -> None:
        """Note what failed in a round: without its way in, no peer may be without objects."""
        stack = node.stack(Family.V4)
        overlay = seen.index_of(backends.overlay_of(stack)) if stack else 0
        broken = [str(it.error) for it in failures if _leads_in(it, overlay)]
        if broken and self._used is not None:
            self._refused, self._refused_until = broken[0], time.monotonic() + AGAIN
        self.opening &= bool(broken)


def _leads_in(failure: Failure, overlay: int) -> bool:
    obj = failure.op.obj
    program = isinstance(obj, Filter) and (obj.ifindex, obj.direction) == (overlay, "egress")
    return program or demand.leads_in(obj)
