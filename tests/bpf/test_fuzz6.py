"""Mutated frames of IPv6 by the thousand, extension headers among them, against a second set of rules."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from scapy.layers.inet6 import IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop

from flannel_ebpf.contract import abi
from tests.bpf import judge6
from tests.bpf.ipv6 import OWN, PEER, POD, STRANGER, VXLAN, Node6, l4, packet, tunnel
from tests.bpf.mutations import flip, frames, judged, resize
from tests.bpf.node import DROP, KERNEL, REDIRECT, UPLINK, UPLINK_MAC, XDP_DROP, XDP_PASS, skb_context

SHORTEST = 62
Load = Callable[[abi.Config], Node6]
SEEDS = [
    bytes(frame)
    for frame in (
        tunnel(packet(PEER.pod, POD, l4("tcp"))),
        tunnel(packet(PEER.pod, POD, l4("tcp:PA", payload=b""))),
        tunnel(packet(PEER.pod, POD, l4("udp"))),
        tunnel(packet(PEER.pod, POD, l4("ping"))),
        tunnel(packet(PEER.pod, POD, tc=2), tc=3),
        tunnel(packet(PEER.public_ip, POD)),
        tunnel(sender=STRANGER),
        tunnel(packet(STRANGER.pod, POD)),
        tunnel(extensions=IPv6ExtHdrDestOpt()),
        tunnel(sender=STRANGER, extensions=IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt()),
        tunnel(sender=STRANGER, extensions=IPv6ExtHdrFragment(m=1, id=3)),
    )
]
FIELDS = (
    0,
    12,
    14,
    15,
    18,
    19,
    20,
    21,
    54,
    55,
    56,
    57,
    58,
    59,
    60,
    61,
    62,
    63,
    65,
    66,
    68,
    69,
    70,
    76,
    82,
    83,
)
INNER_FIELDS = (84, 85, 88, 89, 90, 91, 124, 125, 130, 131, 136, 137)
ADDRESSES = (PEER.public_ip, STRANGER.public_ip, OWN.public_ip, PEER.pod, STRANGER.pod, POD)
VALUES = (0, 1, 2, 3, 6, 0x11, 0x20, 0x2B, 0x2C, 0x3A, 0x3C, 0x50, 0x60, 0x7F, 0x80, 0x81, 0x82, 0xFF)


def mutated(choose: random.Random) -> bytes:
    """Return a seed with one to three faults; half of the time lengths fit again."""
    frame = bytearray(choose.choice(SEEDS))
    for _ in range(choose.randint(1, 3)):
        choose.choice((flip, poke, poke, swap_address, resize))(choose, frame)
    if choose.random() < 0.5 and len(frame) >= 62:
        struct.pack_into("!H", frame, 18, len(frame) - 54)
        if frame[20] == judge6.UDP:
            struct.pack_into("!H", frame, 58, len(frame) - 54)
        if len(frame) >= 124 and choose.random() < 0.7:
            struct.pack_into("!H", frame, 88, len(frame) - 124)
    return bytes(frame)


def poke(choose: random.Random, frame: bytearray) -> None:
    at = choose.choice(choose.choice((FIELDS, INNER_FIELDS)))
    if at < len(frame):
        frame[at] = choose.choice(VALUES)


def swap_address(choose: random.Random, frame: bytearray) -> None:
    at = choose.choice((22, 38, 92, 108))
    if at + 16 <= len(frame):
        frame[at : at + 16] = choose.choice(ADDRESSES).packed


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_nothing_reaches_a_pod_that_should_not(node6: Load, fuzz_frames: int) -> None:
    node = node6(VXLAN)
    made = frames(mutated, SHORTEST, fuzz_frames, seed=fuzz_frames)
    for frame, ran in judged(
        node, "fl_from_peer", made, (REDIRECT, DROP, KERNEL), skb_context(ifindex=UPLINK)
    ):
        expected = judge6.delivered(frame)
        if ran.verdict == REDIRECT:
            assert expected == ran.data, frame.hex()
            continue
        assert expected is None, f"left out: {frame.hex()}"
        assert ran.data == frame, f"changed: {frame.hex()}"
        ours = frame[:6] == UPLINK_MAC.octets or frame[0] & 1
        assert ran.verdict == (DROP if ours and judge6.may_drop(frame) else KERNEL), frame.hex()


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_xdp_drops_exactly_what_no_member_may_send(node6: Load, fuzz_frames: int) -> None:
    node = node6(VXLAN)
    made = frames(mutated, SHORTEST, fuzz_frames, seed=~fuzz_frames)
    for frame, ran in judged(node, "fl_xdp", made, (XDP_DROP, XDP_PASS)):
        assert ran.data == frame, f"changed: {frame.hex()}"
        assert ran.verdict == (XDP_DROP if judge6.may_drop(frame) else XDP_PASS), frame.hex()
