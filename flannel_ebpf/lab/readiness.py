"""When a lab can be used: asked of the kernel, not of the daemons."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.lab.node import Node

Missing = Callable[[Node], str]
"""What a node still lacks, in words; "" when nothing."""


def wait(nodes: Sequence[Node], missing: Missing, deadline: float) -> None:
    """Poll until `missing` says nothing of any node.

    Raises LabError after `deadline` seconds, or as soon as a node's daemon has ended.
    """
    end = time.monotonic() + deadline
    for node in nodes:
        while lack := missing(node):
            late = time.monotonic() > end
            if late or node.daemon is None:
                why = f"after {deadline:g} s" if late else "and its daemon has ended"
                raise LabError(f"{node.name} {lack} {why}; the end of its log:\n{node.log_tail()}")
            time.sleep(0.05)


def unready(node: Node, nodes: Sequence[Node]) -> str:
    """Say what keeps `node` from reaching the other nodes' subnets.

    A daemon makes a peer's route last, so the route stands for its neighbour, FDB and map entries too.
    The udp backend has one route for the whole network.
    """
    if not node.environment():
        return "has no subnet.env"
    wanted = [other for other in nodes if other is not node]
    late = next((other for other in wanted if not other.environment()), None)
    if late:
        return f"waits for {late.name}, which has no subnet.env"
    if node.spec.backend == "udp":
        subnets = {IPv4Network(node.spec.network)} if wanted else set()
    else:
        subnets = {other.subnet for other in wanted}
    absent = subnets - _routes(node)
    return f"has no route to {', '.join(str(subnet) for subnet in sorted(absent))}" if absent else ""


def unattached(node: Node) -> str:
    """Say on which of the uplink and the pods' veths `node` has no program of ours at tc ingress."""
    links = ["eth0", *(pod.veth for pod in node.pods)]
    taken = {hook.device for hook in node.hooks() if hook.direction == "ingress"}
    bare = [link for link in links if link not in taken]
    return f"has no program on {', '.join(bare)}" if bare else ""


def _routes(node: Node) -> set[IPv4Network]:
    routes = json.loads(node.run(["ip", "-4", "-json", "route", "show"]).stdout)
    return {IPv4Network(route["dst"]) for route in routes if route["dst"] != "default"}
