"""A packet as `monitor` shows it: told of by our programs, or dropped by the kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from flannel_ebpf.base.family import Address
from flannel_ebpf.commands.diagnose.readings import PROTOCOLS, end
from flannel_ebpf.contract.enums import Reason
from flannel_ebpf.contract.learned import Event
from flannel_ebpf.kernel.programs.drops import Drop

KERNEL = "kernel"
"""The hook of what the kernel drops."""
_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "."))
_OTHER = Reason.NOT_FAMILY.name.lower()


@dataclass(frozen=True, slots=True)
class Packet:
    """A packet and what became of it. `at`: CLOCK_MONOTONIC, ns; `outer`: who sent the tunnel packet.

    `function`: where in the kernel it was dropped.
    """

    at: int
    ifindex: int
    hook: str
    reason: str
    proto: int
    source: Address
    target: Address
    source_port: int
    target_port: int
    len: int
    tcp_flags: int = 0
    outer: Address | None = None
    function: str = ""

    @classmethod
    def of_event(cls, event: Event) -> Self:
        """Return what a program told of."""
        return cls(
            event.at,
            event.ifindex,
            event.hook.name.lower(),
            event.reason.name.lower(),
            event.proto,
            event.source,
            event.target,
            event.source_port,
            event.target_port,
            event.len,
            event.tcp_flags,
            event.outer if int(event.outer) else None,
        )

    @classmethod
    def of_drop(cls, drop: Drop) -> Self:
        """Return what the kernel dropped."""
        return cls(
            drop.at,
            drop.ifindex,
            KERNEL,
            drop.reason,
            drop.proto,
            drop.source,
            drop.target,
            drop.source_port,
            drop.target_port,
            drop.len,
            function=drop.function,
        )

    @property
    def is_drop(self) -> bool:
        """Whether it is lost."""
        return self.hook == KERNEL or self.reason.startswith("drop")


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which packets are shown; None: any.

    `dual`: each family's programs tell of every packet. Of what is not theirs they say no more than that, and
    it is shown only when its reason is asked for.
    """

    address: Address | None = None
    port: int | None = None
    reason: str = ""
    dual: bool = False

    def __call__(self, packet: Packet) -> bool:
        """Say whether this one is; what the kernel drops is also a "drop"."""
        return (
            (self.address is None or self.address in (packet.source, packet.target, packet.outer))
            and (self.port is None or self.port in (packet.source_port, packet.target_port))
            and not (self.dual and not self.reason and packet.reason == _OTHER)
            and (packet.reason.startswith(self.reason) or (packet.is_drop and "drop".startswith(self.reason)))
        )


def told(packet: Packet) -> str:
    """Return addresses, ports, flags and length of a packet, much as tcpdump would."""
    if not packet.proto:
        return f"another protocol, {packet.len}"
    flags = "".join(letter for bit, letter in _FLAGS if packet.tcp_flags & bit)
    outer = f" from {packet.outer}" if packet.is_drop and packet.outer else ""
    where = f" in {packet.function}" if packet.function else ""
    kind = PROTOCOLS.get(packet.proto, str(packet.proto))
    source, target = (packet.source, packet.source_port), (packet.target, packet.target_port)
    ends = " > ".join(end(*one) if packet.proto in (6, 17) else str(one[0]) for one in (source, target))
    return f"{kind} {ends}{f' [{flags}]' if flags else ''} {packet.len}{outer}{where}"


def plain(packet: Packet, names: dict[int, str]) -> dict[str, Any]:
    """Return a packet as plain values."""
    return {
        "at": packet.at / 1e9,
        "device": names.get(packet.ifindex, ""),
        "hook": packet.hook,
        "reason": packet.reason,
        "protocol": PROTOCOLS.get(packet.proto, str(packet.proto)),
        "source": str(packet.source),
        "target": str(packet.target),
        "source_port": packet.source_port,
        "target_port": packet.target_port,
        "tcp_flags": packet.tcp_flags,
        "outer": str(packet.outer) if packet.outer else "",
        "length": packet.len,
        "function": packet.function,
    }
