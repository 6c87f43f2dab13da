"""Which path packets took through a node, judged by counters alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from flannel_ebpf.base.family import Family
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab.counters import Reasons, device_packets, reasons
from flannel_ebpf.lab.node import Node

FAST = (Reason.FAST_VXLAN, Reason.FAST_DIRECT, Reason.FAST_UDP)
OVERLAYS = {"vxlan": "flannel.1", "host-gw": "eth0", "udp": "flannel0"}
"""Device through which the kernel sends pods' packets to other nodes, by backend."""


@dataclass
class Seen:
    """What a node counted: `reasons` by hook (empty where no programs run), `fast` by BPF, `kernel` not."""

    reasons: Reasons = field(default_factory=Reasons)
    fast: int = 0
    kernel: int = 0

    def at(self, hook: Hook, reason: Reason) -> int:
        return self.reasons[hook, reason]

    def any(self, reason: Reason) -> int:
        """Packets with this reason, all hooks."""
        return sum(self.reasons[hook, reason] for hook in Hook)

    @property
    def share(self) -> float:
        """Part of the packets that BPF carried."""
        return self.fast / max(1, self.fast + self.kernel)

    @property
    def carried(self) -> bool:
        """Whether BPF carried a good part of a flow that is looked at twice a second.

        How good a part is a matter of how many packets a busy machine sends between two looks.
        """
        return self.fast > 100

    @property
    def path(self) -> str:
        """`BPF` when it carried most, `kernel` when it carried nothing at all.

        How much the kernel has to see of a flow before depends on how fast packets come and go.
        """
        if self.fast == 0:
            return "kernel"
        return "BPF" if self.share >= 0.6 else f"mixed: {self.share:.0%} BPF"


def read(node: Node, family: Family | None = None) -> Reasons:
    """Return fl_reasons, empty for a node without programs; `family` as for Node.map_path."""
    return reasons(node, family) if list(node.pin_root.rglob("fl_reasons")) else Reasons()


@contextmanager
def watch(node: Node, device: str | None = None, family: Family | None = None) -> Generator[Seen, None, None]:
    """Count what a block's packets meet on `node`; `device` as in OVERLAYS, `family` as for Node.map_path."""
    device = device or OVERLAYS[node.spec.backend]
    seen = Seen()
    before, packets = read(node, family), device_packets(node, device)
    yield seen
    seen.reasons = read(node, family) - before
    seen.fast = sum(seen.any(reason) for reason in FAST)
    seen.kernel = device_packets(node, device) - packets
    seen.kernel += seen.any(Reason.WRAPPED) + seen.any(Reason.UNWRAPPED)  # BPF did the outer leg alone
    if device == "eth0":  # BPF's packets use it too
        seen.kernel = max(0, seen.kernel - seen.fast)


def programs(node: Node, veth: str) -> int:
    """How many of our programs stand on a veth."""
    return sum(hook.device == veth for hook in node.hooks())
