"""A lab as a small picture, for people."""

from __future__ import annotations

from flannel_ebpf.lab.cluster import Lab
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.spec import ETCD_ENDPOINT, UNDERLAY

WIDTH = 32
GAP = "   "
PORT = 8
SHOWN = 2
"""Nodes, and pods of a node, that are drawn: what fits on a terminal."""


def draw(lab: Lab) -> str:
    """Return the topology of `lab` as text: two nodes with their pods, the switch below them, etcd."""
    shown = lab.nodes[:SHOWN]
    boxes = [GAP.join(cells) for cells in zip(*(_box(node) for node in shown), strict=True)]
    uplinks = GAP.join(f"{'':<{PORT}}│ eth0".ljust(WIDTH) for _ in shown).rstrip()
    switch = f"switch {UNDERLAY}, etcd at {ETCD_ENDPOINT}"
    hidden = len(lab.nodes) - len(shown)
    more = [f"and {hidden} more like these, up to {lab.nodes[-1].name}"] if hidden else []
    return "\n".join([*boxes, uplinks, "═" * len(boxes[0]), f" {switch}", *more])


def _box(node: Node) -> list[str]:
    subnet = str(node.subnet) if node.environment() else "no subnet yet"
    pods = [f"  pod {pod.name:<6} {pod.ip}" for pod in node.pods]
    pods = (pods + [""] * SHOWN)[:SHOWN]
    lines = [f"node {node.name}  {node.ip}", *pods, f"  cni0       {subnet}"]
    edge = "─" * (WIDTH - 2)
    floor = edge[: PORT - 1] + "┬" + edge[PORT:]
    return [f"┌{edge}┐", *(f"│ {line:<{WIDTH - 4}} │" for line in lines), f"└{floor}┘"]
