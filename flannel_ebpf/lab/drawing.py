"""A lab as a small picture, for people."""

from __future__ import annotations

from collections.abc import Iterable

from flannel_ebpf.lab.cluster import Lab
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.spec import ETCD_ENDPOINT, UNDERLAYS

WIDTHS = {"4": 32, "6": 36, "dual": 52}
"""A box's width by the family of the lab."""
GAP = "   "
PORT = 8
SHOWN = 2
"""Nodes, and pods of a node, that are drawn: what fits on a terminal."""


def draw(lab: Lab) -> str:
    """Return the topology of `lab` as text: two nodes with their pods, the switch below them, etcd."""
    shown = lab.nodes[:SHOWN]
    families, width = lab.spec.families, WIDTHS[lab.spec.family]
    boxes = [GAP.join(cells) for cells in zip(*(_box(node, width) for node in shown), strict=True)]
    uplinks = GAP.join(f"{'':<{PORT}}│ eth0".ljust(width) for _ in shown).rstrip()
    underlays = " ".join(str(UNDERLAYS[family]) for family in families)
    switch = f"switch {underlays}, etcd at {ETCD_ENDPOINT}"
    hidden = len(lab.nodes) - len(shown)
    more = [f"and {hidden} more like these, up to {lab.nodes[-1].name}"] if hidden else []
    return "\n".join([*boxes, uplinks, "═" * len(boxes[0]), f" {switch}", *more])


def _box(node: Node, width: int) -> list[str]:
    subnets = [gateway.network for gateway in node.gateways] if node.environment() else ["no subnet yet"]
    pods = [f"  pod {pod.name:<6} {_listed(pod.addresses.values())}" for pod in node.pods]
    pods = (pods + [""] * SHOWN)[:SHOWN]
    uplink = _listed(node.at(family) for family in node.spec.families)
    lines = [f"node {node.name}  {uplink}", *pods, f"  cni0       {_listed(subnets)}"]
    edge = "─" * (width - 2)
    floor = edge[: PORT - 1] + "┬" + edge[PORT:]
    return [f"┌{edge}┐", *(f"│ {line:<{width - 4}} │" for line in lines), f"└{floor}┘"]


def _listed(what: Iterable[object]) -> str:
    return " ".join(map(str, what))
