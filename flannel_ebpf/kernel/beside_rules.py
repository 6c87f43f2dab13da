"""What beside firewall rules could stop pods' packets, or lead them elsewhere, on the kernel's way.

Each is a reason to carry pods by flow: what the kernel has just carried, none of it has stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path

from flannel_ebpf.base.family import Network
from flannel_ebpf.desired.backends import Peer, Stack
from flannel_ebpf.desired.proof.passages import Facts
from flannel_ebpf.desired.proof.proof import Guard, Level
from flannel_ebpf.desired.proof.ranges import both, exactly, of_network
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.bpf import has_netfilter_programs
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.netlink import xfrm
from flannel_ebpf.kernel.netlink.policy import PolicyRule, read_all_rules
from flannel_ebpf.kernel.netlink.routes import KernelRoute, destinations
from flannel_ebpf.kernel.seen import Seen

_IPVS = Path("/proc/thread-self/net/ip_vs")
_IPVS_HEAD = 3
_MODULES = Path("/proc/modules")
_EBTABLES = ("ebtable_filter", "ebtable_nat", "ebtable_broute")


def guards(stack: Stack, peers: Sequence[Peer], facts: Facts, seen: Seen) -> list[Guard]:
    """Return what guards pods, with the reason. Raises KernelError."""
    everywhere = [
        *_forwarding(facts),
        *_neighbours(),
        *_programs(facts, seen),
        *_ipsec(stack.network),
        *_policy_routing(stack, facts, seen),
        *_routes_inside_peers(stack, peers, seen),
    ]
    return [
        *(Guard(facts.pods, Level.FLOWS, why) for why in everywhere),
        *_routes_of_pods(stack, facts, seen),
    ]


def peers_matter(stack: Stack, seen: Seen) -> bool:
    """Say whether a new peer could add a guard: there are routes that might lie inside its subnet."""
    inside = _inside(stack.network, seen.routes(stack.family))
    own = of_network(stack.subnet)
    return any(
        (route.dst[1] > stack.pool.subnet_len or not route.plain) and not both(exactly(route.dst[0]), own)
        for route in inside
    )


def _forwarding(facts: Facts) -> Iterator[str]:
    if not facts.gateways:
        yield "no pod's device is there yet"
    for device in sorted(facts.gateways | facts.overlays):
        if sysctl.read(f"net/ipv{facts.version}/conf/{device}/forwarding") == "0":
            yield f"net.ipv{facts.version}.conf.{device}.forwarding is 0"


def _neighbours() -> Iterator[str]:
    """Tell of what changes packets and is neither rule nor route."""
    if len(_lines(_IPVS)) > _IPVS_HEAD:
        yield "ipvs has services: it translates without rules"
    loaded = {line.split(" ")[0] for line in _lines(_MODULES)}
    for module in _EBTABLES:
        if module in loaded:
            yield f"kernel module {module} is loaded: rules of ebtables-legacy are not read"
    if has_netfilter_programs():
        yield "a BPF program hangs on netfilter's hooks"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _programs(facts: Facts, seen: Seen) -> Iterator[str]:
    """Tell of foreign filters, programs and qdiscs on the devices between pods and uplink."""
    devices = {seen.index_of(name): name for name in sorted(facts.gateways - facts.ports | facts.overlays)}
    uplink = facts.tunnel.uplink if facts.tunnel else ""
    for index in clsact.shaped_devices(seen, devices) | tcx.shaped_devices(seen, devices):
        if devices[index] != uplink:
            yield f"a filter, program or qdisc that is not ours stands on {devices[index]}"
    at = seen.index_of(uplink)
    if uplink and (clsact.has_foreign(seen, at, "ingress") or tcx.has_foreign(seen, at, "ingress")):
        yield f"a filter or program that is not ours stands on ingress of {uplink}"


def _ipsec(network: Network) -> Iterator[str]:
    for policy in xfrm.policies():
        ends = (policy.source, policy.target)
        if policy.source.version == network.version and all(end.overlaps(network) for end in ends):
            yield f"an IPsec policy is for packets from {policy.source} to {policy.target}"


def _policy_routing(stack: Stack, facts: Facts, seen: Seen) -> Iterator[str]:
    devices = facts.gateways | facts.overlays
    for rule in read_all_rules(seen.netlink, stack.family):
        if not rule.marked and _may_meet(rule, stack.network, devices):
            where = _leads(rule, stack, seen)
            if where:
                yield f"a rule of policy routing leads pods' packets to {where}"


def _may_meet(rule: PolicyRule, network: Network, devices: frozenset[str]) -> bool:
    inside = all(end is None or end.overlaps(network) for end in (rule.source, rule.target))
    return inside and (not rule.iif or rule.iif in devices)


def _leads(rule: PolicyRule, stack: Stack, seen: Seen) -> str:
    """Return where a rule's table sends packets for the network, "" if it has nothing for them."""
    if not rule.table:
        return "no table"
    base, bits = int(stack.network.network_address), stack.network.prefixlen
    width = stack.family.bits
    for address, length in destinations(seen.netlink, stack.family, rule.table):
        shorter = width - min(bits, length)
        if address >> shorter == base >> shorter:
            return f"table {rule.table}"
    return ""


def _routes_inside_peers(stack: Stack, peers: Sequence[Peer], seen: Seen) -> Iterator[str]:
    """Tell of routes to a part of a peer's subnet, and of such as are not for every packet."""
    ours = {(int(peer.subnet.network_address), peer.subnet.prefixlen) for peer in peers}
    lengths = {length for _, length in ours}
    for route in _inside(stack.network, seen.routes(stack.family)):
        address, length = route.dst
        if not route.plain:
            yield f"a route to {_text(stack, route)} is for some packets only, or has several next hops"
        elif any(length > bits and (_first(stack, address, bits), bits) in ours for bits in lengths):
            yield f"a route to {_text(stack, route)} lies inside a peer's subnet"


def _routes_of_pods(stack: Stack, facts: Facts, seen: Seen) -> Iterator[Guard]:
    """Guard addresses of our subnet that a route leads to another device than the pods'."""
    pods = {seen.index_of(name) for name in facts.gateways}
    for route in _inside(stack.subnet, seen.routes(stack.family)):
        if route.dst[1] > stack.subnet.prefixlen and route.oif not in pods:
            network = stack.family.network(route.dst[0].to_bytes(stack.family.bits // 8), route.dst[1])
            yield Guard(of_network(network), Level.FLOWS, f"a route leads {network} to another device")


def _inside(network: Network, routes: Sequence[KernelRoute]) -> Iterator[KernelRoute]:
    base, mask, bits = int(network.network_address), int(network.netmask), network.prefixlen
    return (route for route in routes if route.dst[1] >= bits and route.dst[0] & mask == base)


def _first(stack: Stack, address: int, bits: int) -> int:
    width = stack.family.bits - bits
    return address >> width << width


def _text(stack: Stack, route: KernelRoute) -> str:
    return f"{ip_address(route.dst[0].to_bytes(stack.family.bits // 8))}/{route.dst[1]}"
