"""Mutated frames by the thousand: what is delivered, dropped and left alone is exactly what the rules say."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest

from flannel_ebpf.contract import abi
from tests.bpf import judge
from tests.bpf.frames import l4, packet, vxlan
from tests.bpf.mutations import flip, frames, judged, resize
from tests.bpf.node import (
    DROP,
    KERNEL,
    OWN_IP,
    PEER,
    POD,
    REDIRECT,
    STRANGER,
    UPLINK,
    VXLAN,
    XDP_DROP,
    XDP_PASS,
    Node,
    skb_context,
)

SHORTEST = 54
NodeWith = Callable[[abi.Config], Node]

SEEDS = [
    bytes(frame)
    for frame in (
        vxlan(packet(PEER.pod, POD, l4("tcp"))),
        vxlan(packet(PEER.pod, POD, l4("tcp:PA", payload=b""))),
        vxlan(packet(PEER.pod, POD, l4("udp"))),
        vxlan(packet(PEER.pod, POD, l4("udp", payload=b""))),
        vxlan(packet(PEER.pod, POD, l4("ping"))),
        vxlan(packet(PEER.pod, POD, tos=2), tos=3),
        vxlan(packet(PEER.public_ip, POD)),
        vxlan(packet(PEER.pod, POD), sender=STRANGER),
        vxlan(packet(STRANGER.pod, POD)),
    )
]
FIELDS = (0, 12, 14, 15, 16, 20, 21, 22, 23, 26, 29, 30, 33, 36, 38, 42, 45, 46, 48, 49, 50, 55, 56, 61, 62)
INNER_FIELDS = (64, 65, 66, 70, 71, 72, 73, 74, 76, 79, 80, 83, 84, 85, 96, 97)
ADDRESSES = (PEER.public_ip, STRANGER.public_ip, OWN_IP, PEER.pod, STRANGER.pod, POD)


def mutated(choose: random.Random) -> bytes:
    """Return a seed with one to three faults; half of the time lengths and checksums fit again."""
    frame = bytearray(choose.choice(SEEDS))
    for _ in range(choose.randint(1, 3)):
        choose.choice((flip, poke, poke, swap_address, resize))(choose, frame)
    if choose.random() < 0.5:
        repair(frame, lengths=choose.random() < 0.7)
    return bytes(frame)


def poke(choose: random.Random, frame: bytearray) -> None:
    at = choose.choice(choose.choice((FIELDS, INNER_FIELDS)))
    if at < len(frame):
        frame[at] = choose.choice((0, 1, 2, 3, 0x20, 0x44, 0x45, 0x46, 0x50, 0x7F, 0x80, 0xFF))


def swap_address(choose: random.Random, frame: bytearray) -> None:
    at = choose.choice((26, 30, 76, 80))
    if at + 4 <= len(frame):
        frame[at : at + 4] = choose.choice(ADDRESSES).packed


def repair(frame: bytearray, *, lengths: bool) -> None:
    if lengths:
        struct.pack_into("!H", frame, 16, len(frame) - 14)
        struct.pack_into("!H", frame, 38, len(frame) - 34)
        if len(frame) >= 84:
            struct.pack_into("!H", frame, 66, len(frame) - 64)
    for at in (14, 64):
        if at + 20 <= len(frame):
            struct.pack_into("!H", frame, at + 10, 0)
            struct.pack_into("!H", frame, at + 10, 0xFFFF ^ judge.ones_complement(frame[at : at + 20]))


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_nothing_reaches_a_pod_that_should_not(node_with: NodeWith, fuzz_frames: int) -> None:
    node = node_with(VXLAN)
    made = frames(mutated, SHORTEST, fuzz_frames, seed=fuzz_frames)
    for frame, ran in judged(
        node, "fl_from_peer", made, (REDIRECT, DROP, KERNEL), skb_context(ifindex=UPLINK)
    ):
        expected = judge.delivered(frame)
        if ran.verdict == REDIRECT:
            assert expected == ran.data[:24] + b"\0\0" + ran.data[26:], frame.hex()
            assert judge.ones_complement(ran.data[14:34]) == 0xFFFF, frame.hex()
            continue
        assert expected is None, f"left out: {frame.hex()}"
        assert ran.data == frame, f"changed: {frame.hex()}"
        assert ran.verdict == (DROP if must_drop(frame) else KERNEL), frame.hex()


def must_drop(frame: bytes) -> bool:
    """tc looks at what is not for another machine on the link."""
    return bool(frame[:6] == judge.UPLINK_MAC.octets or frame[0] & 1) and judge.may_drop(frame)


@pytest.mark.fuzz
@pytest.mark.timeout(3600)
def test_xdp_drops_exactly_what_no_member_may_send(node_with: NodeWith, fuzz_frames: int) -> None:
    node = node_with(VXLAN)
    made = frames(mutated, SHORTEST, fuzz_frames, seed=~fuzz_frames)
    for frame, ran in judged(node, "fl_xdp", made, (XDP_DROP, XDP_PASS)):
        assert ran.data == frame, f"changed: {frame.hex()}"
        assert ran.verdict == (XDP_DROP if judge.may_drop(frame) else XDP_PASS), frame.hex()
