"""Small rulesets by hand, and a node for them."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flannel_ebpf.desired.proof.packets import Field
from flannel_ebpf.desired.proof.passages import Facts, Tunnel
from flannel_ebpf.desired.proof.proof import Proof, prove
from flannel_ebpf.desired.proof.ranges import Ranges, exactly, of_network, without
from flannel_ebpf.desired.proof.rules import (
    BaseChain,
    Chain,
    ChainName,
    Hook,
    Rule,
    Step,
    TableName,
    Verdict,
    Within,
    effective,
)

SUBNET, NETWORK = IPv4Network("10.1.45.0/24"), IPv4Network("10.1.0.0/16")
A, B = SUBNET[2], SUBNET[3]
REMOTE = IPv4Address("10.1.46.2")
TABLE = TableName("ip", "t")
NODE = Facts(
    version=4,
    pods=of_network(SUBNET),
    others=without(of_network(NETWORK), of_network(SUBNET)),
    gateways=frozenset(["cni0"]),
    ports=frozenset(["veth1"]),
    overlays=frozenset(["flannel.1"]),
    tunnel=Tunnel(exactly(0xC0A80001), exactly(0xC0A80002), 8472, "eth0"),
    kinds={"local": exactly(int(SUBNET[0]), int(SUBNET[1]), 0xC0A80001), "broadcast": (), "multicast": ()},
)


def one(address: IPv4Address) -> Ranges:
    return exactly(int(address))


def source(address: IPv4Address | IPv4Network) -> Step:
    return Within(Field.SADDR, of_network(IPv4Network(address)))


def target(address: IPv4Address | IPv4Network) -> Step:
    return Within(Field.DADDR, of_network(IPv4Network(address)))


def rule(*steps: Step, then: Verdict = None) -> Rule:
    found = effective(steps, then)
    assert found is not None
    return found


def base(hook: Hook = Hook.FORWARD, name: str = "base", priority: int = 0, **more: Any) -> BaseChain:
    return BaseChain(ChainName(TABLE, name), hook, priority, **more)


def proved(bases: BaseChain | Sequence[BaseChain], facts: Facts = NODE, **chains: Sequence[Rule]) -> Proof:
    """Return the proof for chains by name; a jump to any other fails."""
    found = {
        ChainName(TABLE, name): Chain(ChainName(TABLE, name), tuple(rules)) for name, rules in chains.items()
    }
    every = [bases] if isinstance(bases, BaseChain) else bases
    return prove(every, found.__getitem__, facts)


def guarded(proof: Proof, *addresses: IPv4Address) -> list[bool]:
    return [not any(first <= int(a) <= last for first, last in proof.free) for a in addresses]
