"""Which way the packets of a measurement really went, and whether that is the way the mode claims. Pure."""

from __future__ import annotations

from collections import Counter

from perf.modes import Mode

Path = Counter[str]
"""Packets by what happened to them. A super-packet counts once, in every counter.

`packets`: sent and received by the two pods (for `host`: the nodes). `cni0`: those of them that crossed a
bridge device, so took the kernel path. `flannel.1`, `flannel0`: tunnel devices. Names in capitals: reasons of
fl_from_pod and fl_from_peer, which see each packet once.
"""

DEVICES = ("cni0", "flannel.1", "flannel-v6.1", "flannel0")
ENOUGH = 0.9
"""Share of the packets that must have taken the claimed way."""


def carried_by_bpf(path: Path) -> float:
    """Return the share of a path's packets that BPF carried."""
    fast = sum(packets for name, packets in path.items() if name.startswith("FAST_"))
    return fast / path["packets"] if path["packets"] else 0.0


def objection(path: Path, mode: Mode, *, admitted: float) -> str:
    """Say why a measurement does not show what its mode claims, "" when it does.

    `admitted`: the share of the packets that `flows` carries at least.
    """
    packets, fast = path["packets"], carried_by_bpf(path)
    if packets == 0:
        return "no packet was sent"
    kernel = path["cni0"] / packets
    if mode.pods and mode.fastpath is None:
        return "" if kernel >= ENOUGH else f"only {kernel:.0%} of the packets took the kernel path"
    if mode.fastpath:
        return (
            ""
            if fast >= (admitted if mode.fastpath == "flows" or mode.services else ENOUGH)
            else f"BPF carried only {fast:.0%} of the packets"
        )
    return ""


def device_packets(text: str) -> dict[str, int]:
    """Return packets received and sent by device, from /proc/net/dev."""
    found = {}
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        found[name.strip()] = int(fields[1]) + int(fields[9])
    return found
