"""The kernel's features that programs can do without, by the names that flags and reports have for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flannel_ebpf.contract.enums import Cap

WITHOUT: Mapping[Cap, str] = {
    Cap.REDIRECT_NEIGH: "BPF sends nothing to other nodes, it only delivers",
    Cap.REDIRECT_PEER: "packets for pods go through their veth's queue",
    Cap.ENCAP_L2_ETH: "vxlan's super-packets leave through the kernel",
    Cap.DECAP_L4_UDP: "vxlan's aggregates of UDP arrive through the kernel",
    Cap.CSUM_LEVEL: "checksums are verified in the pod, not by the network card",
    Cap.COARSE_CLOCK: "the precise clock is read for each packet",
}
"""What becomes of packets where one is missing; everything arrives all the same."""

NAMES: Mapping[str, Cap] = {(cap.name or "").lower(): cap for cap in Cap}


def names(caps: Cap) -> list[str]:
    """Return the names of features, in the contract's order."""
    return [name for name, cap in NAMES.items() if cap in caps]


def together(given: Iterable[str]) -> Cap:
    """Return the features with these names; raises KeyError with one that is none."""
    caps = Cap(0)
    for name in given:
        caps |= NAMES[name]
    return caps
