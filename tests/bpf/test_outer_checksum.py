"""`--outer-checksum`: over IPv4, too, the outer UDP checksum is the one that the kernel's device writes."""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Reason
from tests import namespaces
from tests.bpf.frames import from_pod, l4, packet
from tests.bpf.kernel_path import KernelNode
from tests.bpf.node import OWN_VTEP, PEER, POD, VXLAN, Node

WITH = replace(VXLAN, outer_checksum=True)
CHECKSUM = slice(40, 42)
NodeWith = Callable[[abi.Config], Node]


@pytest.fixture(scope="module")
def finishing() -> Iterator[KernelNode]:
    """Return the kernel's own path, with an uplink that leaves no checksum to the far end."""
    made = namespaces.new_namespace()
    with namespaces.inside(made):
        node = KernelNode()
        subprocess.run(["ethtool", "-K", "up0", "tx", "off"], check=True, capture_output=True)
    yield node
    node.close()
    os.close(made)


def test_checksums_are_the_kernels(node_with: NodeWith, finishing: KernelNode) -> None:
    node, choose = node_with(WITH), random.Random(7)
    for _ in range(60):
        body = l4(
            choose.choice(["udp", "tcp", "ping", "pong"]),
            sport=choose.randrange(1, 65536),
            dport=choose.randrange(1, 65536),
            payload=choose.randbytes(choose.randrange(1300)),
        )
        frame = bytes(from_pod(body, tos=choose.randrange(256), ttl=choose.randrange(2, 256)))
        ran = node.run("fl_from_pod", frame)
        theirs = finishing.encapsulated(frame)
        assert ran.reason == Reason.FAST_VXLAN
        # the IP identification, in which alone they differ, is not summed up
        assert ran.frame[CHECKSUM].hex() == theirs[CHECKSUM].hex() != "0000"


def test_a_datagram_without_a_checksum_leaves_it_0(node_with: NodeWith) -> None:
    frame = bytes(from_pod(UDP(chksum=0) / Raw(bytes(20))))
    ran = node_with(WITH).run("fl_from_pod", frame)
    assert (ran.reason, ran.frame[CHECKSUM]) == (Reason.FAST_VXLAN, b"\0\0")


@pytest.mark.parametrize("kind", ["udp", "fragment"])
def test_the_kernels_packets_have_it_where_it_can_be_told(kind: str, node_with: NodeWith) -> None:
    inner = packet(POD, PEER.pod, l4(), ttl=63, flags="MF" if kind == "fragment" else "")
    frame = bytes(Ether(src=str(OWN_VTEP), dst=str(PEER.vtep)) / inner)
    sent = node_with(WITH).run("fl_to_peer", frame).frame
    bpf = node_with(WITH).run("fl_from_pod", bytes(from_pod())).frame
    assert sent[CHECKSUM] == (bpf[CHECKSUM] if kind == "udp" else b"\0\0")
