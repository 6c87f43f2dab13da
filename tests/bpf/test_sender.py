"""Who sent a tunnel packet is asked first, whatever else is odd about it; by tc and XDP alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from scapy.layers.inet import IP
from scapy.packet import Packet, Raw

from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import OUTSIDE
from tests.bpf.frames import on_wire, packet, udp_tunnel, vxlan
from tests.bpf.node import (
    DROP,
    KERNEL,
    NEXT_HOP_MAC,
    OTHER_POD,
    OWN_IP,
    PEER,
    POD,
    REDIRECT,
    SECOND_PEER,
    STRANGER,
    UDP,
    VXLAN,
    XDP_DROP,
    XDP_PASS,
    Node,
    Remote,
)

NodeWith = Callable[[abi.Config], Node]
OPTIONS = b"\x01\x01\x01\x01"


def odd(kind: str, sender: Remote, inner: Packet | None = None) -> bytes:
    """A packet of `sender` that is not quite as the programs take them, and as the kernel does."""
    tunnel = {"vxlan": vxlan, "udp": udp_tunnel}[kind.partition(" ")[0]]
    frames: dict[str, Callable[[], Packet | bytes]] = {
        "plain": lambda: tunnel(inner, sender=sender),
        "options": lambda: tunnel(inner, sender=sender, options=OPTIONS),
        "most options": lambda: tunnel(inner, sender=sender, options=OPTIONS * 10),
        "first fragment": lambda: tunnel(inner, sender=sender, flags="MF"),
        "short UDP length": lambda: _short_udp(tunnel(inner, sender=sender)),
        "bytes behind it": lambda: bytes(tunnel(inner, sender=sender)) + b"x",
        "wrong checksum": lambda: tunnel(inner, sender=sender, chksum=1),
        "broadcast frame": lambda: on_wire(tunnel(inner, sender=sender)[IP], "ff:ff:ff:ff:ff:ff"),
    }
    return bytes(frames[kind.partition(" ")[2]]())


def _short_udp(frame: Packet) -> bytes:
    raw = bytearray(bytes(frame))
    raw[38:40] = (int.from_bytes(raw[38:40], "big") - 1).to_bytes(2, "big")
    return bytes(raw)


KINDS = [
    f"{tunnel} {how}"
    for tunnel in ("vxlan", "udp")
    for how in (
        "plain",
        "options",
        "most options",
        "first fragment",
        "short UDP length",
        "bytes behind it",
        "wrong checksum",
        "broadcast frame",
    )
]


def config_of(kind: str) -> abi.Config:
    return UDP if kind.startswith("udp") else VXLAN


@pytest.mark.parametrize("kind", KINDS)
def test_a_stranger_is_dropped(kind: str, node_with: NodeWith) -> None:
    node, frame = node_with(config_of(kind)), odd(kind, STRANGER)
    for program, drop in (("fl_from_peer", DROP), ("fl_xdp", XDP_DROP)):
        ran = node.run(program, frame)
        assert (ran.verdict, ran.reason) == (drop, Reason.DROP_NOT_MEMBER), program


@pytest.mark.parametrize("kind", KINDS)
def test_a_member_is_not(kind: str, node_with: NodeWith) -> None:
    node, frame = node_with(config_of(kind)), odd(kind, PEER)
    assert node.run("fl_from_peer", frame).verdict in (KERNEL, REDIRECT)
    assert node.run("fl_xdp", frame).verdict == XDP_PASS


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", ["another member's pod", "our pod", "our node", "another node"])
def test_a_member_may_not_be_somebody_else(kind: str, source: str, node_with: NodeWith) -> None:
    node = node_with(config_of(kind))
    node.add_peer(SECOND_PEER, SECOND_PEER.peer(node.config.backend))
    address = {
        "another member's pod": SECOND_PEER.pod,
        "our pod": OTHER_POD,
        "our node": OWN_IP,
        "another node": SECOND_PEER.public_ip,
    }[source]
    frame = odd(kind, PEER, packet(address, POD))
    for program, drop in (("fl_from_peer", DROP), ("fl_xdp", XDP_DROP)):
        ran = node.run(program, frame)
        assert (ran.verdict, ran.reason) == (drop, Reason.DROP_PEER_SOURCE), program


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_nobodys_is_the_kernels(kind: str, node_with: NodeWith) -> None:
    """A node's second address, or a host that is routed through it."""
    node, frame = node_with(config_of(kind)), odd(kind, PEER, packet(OUTSIDE, POD))
    ran = node.run("fl_from_peer", frame)
    assert (ran.verdict, ran.reason, ran.frame) == (KERNEL, Reason.PEER_SOURCE, frame)
    assert node.run("fl_xdp", frame).verdict == XDP_PASS


def test_a_first_fragment_that_hides_its_sender_is_dropped(node_with: NodeWith) -> None:
    whole = bytes(vxlan(flags="MF"))
    for length in (42, 50, 64, 83):
        ran = node_with(VXLAN).run("fl_from_peer", whole[:length])
        assert ran.verdict == DROP, length


def test_later_fragments_pass(node_with: NodeWith) -> None:
    """Without their first they never become a packet."""
    frame = bytes(
        on_wire(IP(src=str(STRANGER.public_ip), dst=str(OWN_IP), proto=17, frag=10) / Raw(bytes(64)))
    )
    assert node_with(VXLAN).run("fl_from_peer", frame).reason == Reason.OUTER
    assert node_with(VXLAN).run("fl_xdp", frame).verdict == XDP_PASS


def test_frames_for_other_machines_are_theirs(node_with: NodeWith) -> None:
    frame = bytes(on_wire(vxlan(sender=STRANGER)[IP], NEXT_HOP_MAC))
    assert node_with(VXLAN).run("fl_from_peer", frame).reason == Reason.NOT_UNICAST


@pytest.mark.parametrize("check", [enums.Check.COUNT, enums.Check.OFF])
def test_only_drop_drops(check: enums.Check, node_with: NodeWith) -> None:
    node = node_with(replace(VXLAN, source_check=check))
    for kind in KINDS[:8]:
        assert node.run("fl_from_peer", odd(kind, STRANGER)).verdict == KERNEL
