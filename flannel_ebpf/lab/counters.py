"""Which path packets took: the programs' reasons and the devices' own counters, as differences."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import astuple

from flannel_ebpf.base.family import Family
from flannel_ebpf.contract.abi import unpack_u32
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.contract.learned import Count
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab.node import Node

Reasons = Counter[tuple[Hook, Reason]]
"""Packets by hook and reason. `after - before` is what came between."""


def reasons(node: Node, family: Family | None = None) -> Reasons:
    """Read fl_reasons of `node`, all CPUs added up; `family` as for Node.map_path.

    Raises LabError when no such map is pinned.
    """
    found: Reasons = Counter()
    with Map.open(node.map_path("fl_reasons", family)) as counters:
        for key, value in counters.sums().items():
            for hook, packets in zip(Hook, astuple(Count.unpack(value)), strict=True):
                found[hook, Reason(unpack_u32(key))] = packets
    return found


def device_packets(node: Node, device: str) -> int:
    """Return how many packets `device` has sent and received. A super-packet counts once, as in reasons."""
    link = json.loads(node.run(["ip", "-json", "-stats", "link", "show", "dev", device]).stdout)[0]
    return int(link["stats64"]["tx"]["packets"]) + int(link["stats64"]["rx"]["packets"])
