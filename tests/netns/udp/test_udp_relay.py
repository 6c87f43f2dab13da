"""Packets through the relay, between a real TUN and a peer that is not ours."""

from __future__ import annotations

import errno
import os
import socket
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from flannel_ebpf.relay.supervise import Relay
from tests.namespaces import inside
from tests.netns.udp import peer as lab
from tests.netns.udp.relay_node import (
    NODE,
    PEER,
    app,
    namespaces,
    relay,
    started,
    stopped_in_the_end,
    sum_received,
    wire,
)
from tests.polls import eventually

__all__ = ["app", "namespaces", "relay", "stopped_in_the_end", "wire"]


@pytest.mark.usefixtures("relay")
def test_datagram_on_the_wire_is_the_bare_packet(wire: socket.socket, app: socket.socket) -> None:
    with closing(lab.sniffer(PEER, "up0")) as raw, closing(lab.sniffer(NODE, "flannel0")) as before:
        app.sendto(b"hello", ("10.1.6.2", 5000))
        original = IP(lab.frame_where(before, lambda frame: b"hello" in frame))
        frame = lab.frame_where(raw, lambda frame: b"hello" in frame)
    outer = IP(frame[14:])
    assert (outer.src, outer.dst, outer.proto) == (lab.NODE, lab.PEER, 17)
    assert (outer[UDP].sport, outer[UDP].dport, outer[UDP].len) == (8285, 8285, 8 + len(original))
    original.ttl -= 1
    del original.chksum
    assert wire.recv(2000) == bytes(original) == frame[14 + 28 :]
    assert IP(bytes(original)).src == "10.1.5.0"


@pytest.mark.usefixtures("relay")
def test_packet_of_a_peer_arrives_with_its_ttl_taken_down(wire: socket.socket, app: socket.socket) -> None:
    wire.sendto(lab.inner(ttl=9), (lab.NODE, 8285))
    data, notes, _, sender = app.recvmsg(2000, 100)
    assert (len(data), sender) == (32, ("10.1.6.2", 5000))
    assert int.from_bytes(notes[0][2], "little") == 8


def test_ttl_ends_silently_both_ways(relay: Relay, wire: socket.socket, app: socket.socket) -> None:
    wire.sendto(lab.inner(ttl=1), (lab.NODE, 8285))
    app.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
    app.sendto(b"last hop", ("10.1.6.2", 5000))
    eventually(lambda: relay.status()["rx_ttl"] == relay.status()["tx_ttl"] == 1, "both packets end here")
    assert relay.status()["rx_delivered"] == relay.status()["tx_sent"] == 0


def test_no_lease_is_answered_with_net_unreachable(relay: Relay, app: socket.socket) -> None:
    app.setsockopt(socket.IPPROTO_IP, 11, 1)  # IP_RECVERR: an ICMP error becomes an error of the socket
    with closing(lab.sniffer(NODE, "flannel0")) as raw:
        app.sendto(b"nobody there", ("10.1.99.1", 5000))
        offender = lab.frame_where(raw, lambda frame: b"nobody there" in frame)
        reply = lab.frame_where(raw, lambda frame: frame[9:10] == b"\x01")
    expected = IP(src="10.1.5.0", dst="10.1.5.0", ttl=8, id=0) / ICMP(type=3, code=0) / Raw(offender[:28])
    assert reply == bytes(expected)
    with pytest.raises(OSError, match="unreachable") as refused:
        app.recv(2000)
    assert refused.value.errno == errno.ENETUNREACH
    assert relay.status()["icmp_unreachable"] == relay.status()["tx_no_route"] == 1


def test_ping_without_a_lease_is_not_answered(relay: Relay) -> None:
    with inside(NODE), closing(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)) as raw:
        raw.sendto(bytes(ICMP()), ("10.1.99.1", 0))
    eventually(lambda: relay.status()["tx_no_route"] == 1, "the packet is counted")
    assert relay.status()["icmp_unreachable"] == 0


def test_mtu_edge(relay: Relay, wire: socket.socket, app: socket.socket) -> None:
    app.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER = IP_PMTUDISC_DO
    app.sendto(bytes(lab.MTU - 28), ("10.1.6.2", 5000))
    assert len(wire.recv(2000)) == lab.MTU
    with pytest.raises(OSError, match="too long"):
        app.sendto(bytes(lab.MTU - 27), ("10.1.6.2", 5000))
    wire.sendto(lab.inner(lab.MTU), (lab.NODE, 8285))
    assert len(app.recv(2000)) == lab.MTU - 28
    wire.sendto(lab.inner(lab.MTU + 1), (lab.NODE, 8285))
    wire.sendto(lab.inner(60000), (lab.NODE, 8285))
    eventually(lambda: relay.status()["rx_oversize"] == 2, "both are counted as too large")
    assert relay.status()["rx_delivered"] == 1


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "rx_malformed"),
        (lab.inner()[:1], "rx_malformed"),
        (lab.inner()[:19], "rx_malformed"),
        (lab.inner()[:59], "rx_truncated"),
        (b"\x65" + lab.inner()[1:], "rx_malformed"),
        (lab.inner(src="10.1.7.2"), "rx_foreign_source"),
        (lab.inner(src="10.1.5.0"), "rx_foreign_source"),
    ],
)
def test_wrong_datagram_is_named_and_goes_nowhere(
    relay: Relay, wire: socket.socket, datagram: bytes, reason: str
) -> None:
    wire.sendto(datagram, (lab.NODE, 8285))
    eventually(lambda: relay.status()[reason] == 1, f"{reason} is counted")
    assert relay.status()["rx_delivered"] == 0


def test_source_check(relay: Relay, tmp_path: Path, app: socket.socket) -> None:
    with closing(lab.udp_socket(PEER, lab.STRANGER, 8285)) as stranger:
        stranger.sendto(lab.inner(), (lab.NODE, 8285))
        eventually(lambda: relay.status()["rx_not_member"] == 1, "the stranger is counted")
        open_to_all = Relay(lab.spec(tmp_path, source_check="off"))
        with inside(NODE):
            assert open_to_all.ensure_running() == "replaced"
        stranger.sendto(lab.inner(), (lab.NODE, 8285))
        assert len(app.recv(2000)) == 32


def received_by_tun() -> int:
    return int(lab.run("ip", "netns", "exec", NODE, "cat", "/sys/class/net/flannel0/statistics/rx_packets"))


def test_flood_of_junk_injects_nothing(relay: Relay, wire: socket.socket, app: socket.socket) -> None:
    pid, before = relay.pid(), received_by_tun()
    sent = 0
    with closing(lab.udp_socket(PEER, lab.STRANGER, 9000)) as stranger:
        for size in (1, 19, 20, 60, 900):
            for sock in (wire, stranger):
                for _ in range(50):
                    count = min(64, 60000 // size)
                    junk = (b"\x45\x00" + os.urandom(size))[:size] * count  # total length does not fit
                    parts, notes = lab.segments(junk, size)
                    sock.sendmsg(parts, notes, 0, (lab.NODE, 8285))
                    sent += count
    eventually(
        lambda: sum_received(relay) == sent or relay.status()["rx_delivered"], "all junk is counted", 20
    )
    junk_delivered = relay.status()["rx_delivered"]
    assert received_by_tun() - before == junk_delivered
    assert junk_delivered == 0
    wire.sendto(lab.inner(), (lab.NODE, 8285))
    assert len(app.recv(2000)) == 32
    assert relay.pid() == pid


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=1600))
def test_random_datagram_counts_once(relay: Relay, wire: socket.socket, junk: bytes) -> None:
    before = sum_received(relay)
    wire.sendto(junk, (lab.NODE, 8285))
    eventually(lambda: sum_received(relay) == before + 1, "the datagram is counted")


@pytest.mark.usefixtures("relay")
def test_burst_arrives_in_order_at_a_peer_that_knows_no_batches(
    wire: socket.socket, app: socket.socket
) -> None:
    burst = b"".join(number.to_bytes(4) + bytes(96) for number in range(60))
    for _ in range(20):
        parts, notes = lab.segments(burst, 100)
        app.sendmsg(parts, notes, 0, ("10.1.6.2", 5000))
        got = [wire.recv(2000) for _ in range(60)]
        assert [len(packet) for packet in got] == [128] * 60
        assert [int.from_bytes(packet[28:32]) for packet in got] == list(range(60))


def test_ipv6_is_counted_and_goes_nowhere(relay: Relay) -> None:
    with inside(NODE), closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sock:
        before = relay.status()["tx_ipv6"]
        scope = socket.if_nametoindex("flannel0")
        sock.sendto(b"v6", ("ff02::1", 5000, 0, scope))
    eventually(lambda: relay.status()["tx_ipv6"] > before, "the IPv6 packet is counted")
    assert relay.status()["tx_sent"] == 0


def test_several_queues_carry_several_flows(tmp_path: Path, wire: socket.socket) -> None:
    relay = started(tmp_path, queues=2)
    for number in range(40):
        with closing(lab.udp_socket(NODE, "10.1.5.0", 7001 + number)) as app:
            app.sendto(b"out", ("10.1.6.2", 5000))
            assert wire.recv(2000).endswith(b"out")
            wire.sendto(lab.inner(port=7001 + number), (lab.NODE, 8285))
            assert len(app.recv(2000)) == 32
    eventually(lambda: relay.status()["tx_sent"] == relay.status()["rx_delivered"] == 40, "all are counted")
