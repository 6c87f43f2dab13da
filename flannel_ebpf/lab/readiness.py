"""When a lab can be used: asked of the kernel, not of the daemons."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from ipaddress import IPv4Network, ip_network

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Family, Network, in_order
from flannel_ebpf.contract import abi
from flannel_ebpf.kernel.bpf import Map
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
    The udp backend has one route for the whole network, and vxlan where peers come on demand: there the
    programs know them.
    """
    if not node.environment():
        return "has no subnet.env"
    wanted = [other for other in nodes if other is not node]
    late = next((other for other in wanted if not other.environment()), None)
    if late:
        return f"waits for {late.name}, which has no subnet.env"
    if node.spec.backend == "udp":
        subnets: set[Network] = {IPv4Network(node.spec.network)} if wanted else set()
    else:
        subnets = {gateway.network for other in wanted for gateway in other.gateways}
    reached = {route for family in node.spec.families for route in _routes(node, family)}
    if node.spec.backend == "vxlan" and IPv4Network(node.spec.network) in reached:
        reached |= _known(node)
    absent = subnets - reached
    return f"has no route to {', '.join(map(str, sorted(absent, key=in_order)))}" if absent else ""


def unattached(node: Node) -> str:
    """Say on which of the uplink and the pods' veths `node` lacks a family's program at tc ingress."""
    families = 1 if node.spec.backend == "udp" else len(node.spec.families)
    links = ["eth0", *(pod.veth for pod in node.pods)]
    taken = Counter(hook.device for hook in node.hooks() if hook.direction == "ingress")
    bare = [link for link in links if taken[link] < families]
    return f"has no program on {', '.join(bare)}" if bare else ""


def _known(node: Node) -> set[Network]:
    with Map.open(node.map_path("fl_peers")) as peers:
        keys = map(abi.SubnetKey.unpack, peers.items())
        return {ip_network((key.addr, key.len)) for key in keys}


def _routes(node: Node, family: Family) -> set[Network]:
    routes = json.loads(node.run(["ip", f"-{family.value}", "-json", "route", "show"]).stdout)
    return {ip_network(route["dst"]) for route in routes if route["dst"] != "default"}
