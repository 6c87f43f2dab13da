"""Compares what the proof says of a ruleset with what the kernel does with packets.

The first claim: a pod that is free can leave the kernel's way without any difference. So its packets to and
from the overlay arrive as they were sent, meet no rule that is not neutral, and no packet of anybody else
comes to the pod, or into the overlay from it, by translation.

The second: where rules do not judge packets one by one, the kernel treats all packets of a flow as it
treated the first ones. So when those arrive as they were sent, all do.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address

from flannel_ebpf.desired.proof.proof import Level, Proof, prove
from flannel_ebpf.desired.proof.ranges import Ranges
from flannel_ebpf.kernel.firewall.netfilter import Netfilter
from tests.namespaces import inside
from tests.netns.proof.ground import ELSEWHERE, NODE_IP, OUTSIDER, PODS, REMOTE, SERVICE, Ground, place_of
from tests.netns.proof.ruleset import Loaded, counted
from tests.netns.proof.wire import TCP, Speaker, Step, is_same_kind, token_of

_UDP_PORTS, _TCP_PORTS = (53, 8080), (80, 53)
_QUIET = 0.02


@dataclass
class Verdict:
    """What was found of one ruleset. `wrong`: counter-examples, in words."""

    proof: Proof
    free: list[IPv4Address]
    by_flow: list[IPv4Address] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


def prove_here(ground: Ground) -> Proof:
    """Return the proof for the rules that stand in the node now."""
    with inside(ground.node):
        netfilter = Netfilter(4)
        try:
            return prove(netfilter.bases(), netfilter.chain, ground.facts())
        finally:
            netfilter.close()


def is_in(addresses: Ranges, pod: IPv4Address) -> bool:
    return any(first <= int(pod) <= last for first, last in addresses)


def judge(
    ground: Ground, loaded: Loaded, speaker: Speaker, proof: Proof | None = None, patience: float = 2.0
) -> Verdict:
    """Look for a counter-example to the proof, or to a claim given in its stead.

    `patience`: seconds of an idle machine after which a packet that should arrive counts as lost.
    """
    proof = proof or prove_here(ground)
    verdict = Verdict(proof, [pod for pod in PODS if is_in(proof.free, pod)])
    list(ground.taken())
    if verdict.free:
        before = counted(ground, loaded)
        verdict.wrong += talk(ground, speaker, verdict.free, patience)
        after = counted(ground, loaded)
        verdict.wrong += [f"packets met rule {tag}" for tag in after if after[tag] != before.get(tag, 0)]
        verdict.wrong += translated(ground, speaker, verdict.free)
    kernel = proof.of_level(Level.KERNEL)
    verdict.by_flow = [pod for pod in PODS if not is_in(kernel, pod)]
    verdict.wrong += flows(ground, speaker, [pod for pod in verdict.by_flow if pod not in verdict.free])
    return verdict


def flows(ground: Ground, speaker: Speaker, pods: list[IPv4Address]) -> list[str]:
    """Have these pods talk in flows of unlike packets; return what was treated otherwise than the first."""
    talks = []
    for pod in pods:
        other = REMOTE[PODS.index(pod) % len(REMOTE)]
        for one, two in ((pod, other), (other, pod)):
            talks += [(one, two, speaker.odd_udp(one, two, 53)), (one, two, speaker.odd_tcp(one, two, 80))]
    wrong = []
    for one, two, steps in talks:
        first = 3 if steps[0].packet[9] == TCP else 2
        opening = [(step, *_ends(one, two, step)) for step in steps[:first]]
        if not any(ground.arrives([sent], patience=_QUIET) for sent in opening):
            for step in steps[first:]:
                wrong += [
                    f"one of a flow: {said}" for said in ground.arrives([(step, *_ends(one, two, step))])
                ]
                if wrong:
                    return wrong
    return wrong


def talk(ground: Ground, speaker: Speaker, pods: list[IPv4Address], patience: float) -> list[str]:
    """Have these pods talk with remote ones; return what did not arrive as it was sent."""
    talks = list(_conversations(speaker, pods))
    for number in range(max(len(steps) for _, _, steps in talks)):
        sent = [
            (steps[number], *_ends(one, other, steps[number]))
            for one, other, steps in talks
            if number < len(steps)
        ]
        wrong = ground.arrives(sent, patience)
        if wrong:
            return wrong  # what follows would not be a conversation
    return []


def _conversations(
    speaker: Speaker, pods: list[IPv4Address]
) -> Iterator[tuple[IPv4Address, IPv4Address, list[Step]]]:
    for pod in pods:
        for other in REMOTE:
            for one, two in ((pod, other), (other, pod)):
                for port in _UDP_PORTS:
                    yield one, two, speaker.udp(one, two, port)
                for port in _TCP_PORTS:
                    yield one, two, speaker.tcp(one, two, port, reset=port == _TCP_PORTS[-1])
                yield one, two, speaker.ping(one, two)
                yield one, two, speaker.refused(one, two, 9)


def _ends(one: IPv4Address, other: IPv4Address, step: Step) -> tuple[str, str]:
    return (place_of(one), place_of(other)) if step.outwards else (place_of(other), place_of(one))


def translated(ground: Ground, speaker: Speaker, free: list[IPv4Address]) -> list[str]:
    """Send packets that no overlay carries, and return those that became a free pod's, or its overlay's."""
    sent = {}
    for source, place in ((OUTSIDER, "outside"), *((pod, place_of(pod)) for pod in (*PODS, *REMOTE))):
        for target in (SERVICE, NODE_IP, ELSEWHERE, *PODS):
            for step in _first_packets(speaker, source, target):
                if target not in PODS or source == OUTSIDER:
                    sent[step.token] = (source, target, step.packet)
                    ground.put(place, step.packet)
    wrong = []
    for place, packet in ground.taken(_QUIET):
        source, target, before = sent.get(token_of(packet), (None, None, b""))
        if source is None or not is_same_kind(packet, before):
            continue
        now_from, now_to = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
        said = f"{source} to {target} came to {place} as {now_from} to {now_to}"
        if now_to in free and target not in PODS:
            wrong.append(f"translated to a free pod: {said}")
        if now_from in free and source != now_from:
            wrong.append(f"translated to a free pod's address: {said}")
        if source in free and now_to in REMOTE:
            wrong.append(f"translated into the overlay from a free pod: {said}")
    return wrong


def _first_packets(speaker: Speaker, source: IPv4Address, target: IPv4Address) -> Iterator[Step]:
    for port in (*_UDP_PORTS, 80):
        yield speaker.udp(source, target, port)[0]
        yield speaker.tcp(source, target, port)[0]
    yield speaker.ping(source, target)[0]
