"""The relay between a real TUN and a peer that is not ours."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest
import udp_peer as lab
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from flannel_ebpf.errors import KernelError
from flannel_ebpf.kernel import tun
from flannel_ebpf.relay.supervise import Relay

PREFIX = f"rly{os.getpid() % 10000}"
NODE, PEER = f"{PREFIX}a", f"{PREFIX}b"
LONG = os.environ.get("FLANNEL_TEST_LONG") == "1"


@pytest.fixture(scope="module", autouse=True)
def _namespaces() -> Iterator[None]:
    with lab.two_namespaces(PREFIX):
        yield


def started(folder: Path, **changes: object) -> Relay:
    relay = Relay(lab.spec(folder, **changes))
    relay.update_peers(lab.PEERS)
    with lab.inside(NODE):
        relay.ensure_running()
    return relay


@pytest.fixture(autouse=True)
def _stopped_in_the_end(tmp_path: Path) -> Iterator[None]:
    yield
    Relay(lab.spec(tmp_path)).stop()


@pytest.fixture
def relay(tmp_path: Path) -> Relay:
    return started(tmp_path)


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    with closing(lab.udp_socket(PEER, lab.PEER, 8285)) as sock:
        yield sock


@pytest.fixture
def app() -> Iterator[socket.socket]:
    """An application on the node, at the TUN's own address."""
    with closing(lab.udp_socket(NODE, "10.1.5.0", 7000)) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
        yield sock


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
    lab.eventually(lambda: relay.status()["rx_ttl"] == relay.status()["tx_ttl"] == 1)
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
    with lab.inside(NODE), closing(socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)) as raw:
        raw.sendto(bytes(ICMP()), ("10.1.99.1", 0))
    lab.eventually(lambda: relay.status()["tx_no_route"] == 1)
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
    lab.eventually(lambda: relay.status()["rx_oversize"] == 2)
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
    lab.eventually(lambda: relay.status()[reason] == 1)
    assert relay.status()["rx_delivered"] == 0


def test_source_check(relay: Relay, tmp_path: Path, app: socket.socket) -> None:
    with closing(lab.udp_socket(PEER, lab.STRANGER, 8285)) as stranger:
        stranger.sendto(lab.inner(), (lab.NODE, 8285))
        lab.eventually(lambda: relay.status()["rx_not_member"] == 1)
        open_to_all = Relay(lab.spec(tmp_path, source_check="off"))
        with lab.inside(NODE):
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
    lab.eventually(lambda: sum_received(relay) == sent or relay.status()["rx_delivered"], 20)
    junk_delivered = relay.status()["rx_delivered"]
    assert received_by_tun() - before == junk_delivered
    assert junk_delivered == 0
    wire.sendto(lab.inner(), (lab.NODE, 8285))
    assert len(app.recv(2000)) == 32
    assert relay.pid() == pid


def sum_received(relay: Relay) -> int:
    return sum(n for name, n in relay.status().items() if name.startswith("rx_") and name != "rx_bytes")


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=1600))
def test_random_datagram_counts_once(relay: Relay, wire: socket.socket, junk: bytes) -> None:
    before = sum_received(relay)
    wire.sendto(junk, (lab.NODE, 8285))
    lab.eventually(lambda: sum_received(relay) == before + 1)


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
    with lab.inside(NODE), closing(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)) as sock:
        before = relay.status()["tx_ipv6"]
        scope = socket.if_nametoindex("flannel0")
        sock.sendto(b"v6", ("ff02::1", 5000, 0, scope))
    lab.eventually(lambda: relay.status()["tx_ipv6"] > before)
    assert relay.status()["tx_sent"] == 0


def test_new_peers_count_at_once(relay: Relay, wire: socket.socket, app: socket.socket) -> None:
    pid = relay.pid()
    assert not relay.update_peers(lab.PEERS)
    wider = {**lab.PEERS, IPv4Network("10.1.7.128/25"): IPv4Address(lab.PEER)}
    assert relay.update_peers(wider)

    def got_through() -> bool:
        app.sendto(b"to a new peer", ("10.1.7.200", 5000))
        wire.settimeout(0.02)
        try:
            return wire.recv(2000).endswith(b"to a new peer")
        except TimeoutError:
            return False

    lab.eventually(got_through, 0.5)
    assert relay.update_peers({})
    lab.eventually(lambda: not got_through())
    assert relay.pid() == pid


def test_broken_peers_file_changes_nothing(
    relay: Relay, tmp_path: Path, wire: socket.socket, app: socket.socket
) -> None:
    (tmp_path / "new").write_text("{")
    (tmp_path / "new").rename(tmp_path / "peers.json")
    lab.eventually(lambda: "peers stay as they are" in (tmp_path / "log").read_text())
    app.sendto(b"still there", ("10.1.6.2", 5000))
    assert wire.recv(2000).endswith(b"still there")
    assert relay.update_peers(lab.PEERS)


def test_crash_is_said_at_once_and_repaired(tmp_path: Path, wire: socket.socket, app: socket.socket) -> None:
    said: list[str] = []
    ended = threading.Event()

    def on_exit(line: str) -> None:
        said.append(line)
        ended.set()

    relay = Relay(lab.spec(tmp_path), on_exit)
    relay.update_peers(lab.PEERS)
    with lab.inside(NODE):
        assert relay.ensure_running() == "started"
        assert relay.ensure_running() == "running"
        for kill_main in (False, True):
            ended.clear()
            os.kill(relay.pid() if kill_main else lab.children(relay.pid())[1], signal.SIGKILL)
            assert ended.wait(5)
            assert "10.1.0.0/16 dev flannel0" in lab.run("ip", "-n", NODE, "route")
            assert relay.ensure_running() == "restarted"
    assert len(said) == 2
    assert "ended with -9" in said[0]
    app.sendto(b"repaired", ("10.1.6.2", 5000))
    assert wire.recv(2000).endswith(b"repaired")
    assert relay.stop()
    assert not relay.stop()
    assert len(said) == 2


DAEMON = """
import os, signal, sys
from pathlib import Path
from flannel_ebpf.relay.supervise import Relay
import udp_peer as lab
relay = Relay(lab.spec(Path(sys.argv[1])))
relay.update_peers(lab.PEERS)
assert relay.ensure_running() == "started"
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_relay_outlives_its_daemon_and_is_adopted(
    tmp_path: Path, wire: socket.socket, app: socket.socket
) -> None:
    with lab.inside(NODE):
        command = [sys.executable, "-c", DAEMON, str(tmp_path)]
        found_here = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
        daemon = subprocess.run(command, check=False, timeout=20, env=found_here)
        assert daemon.returncode == -signal.SIGKILL
        app.sendto(b"orphaned", ("10.1.6.2", 5000))
        assert wire.recv(2000).endswith(b"orphaned")
        successor = Relay(lab.spec(tmp_path))
        assert successor.ensure_running() == "adopted"
        assert successor.ensure_running() == "running"
    assert successor.update_peers({})

    def refused() -> int:
        app.sendto(b"nobody", ("10.1.6.2", 5000))
        return successor.status()["tx_no_route"]

    lab.eventually(refused)
    assert successor.stop()


def test_device_is_repaired(tmp_path: Path, wire: socket.socket) -> None:
    ended = threading.Event()
    relay = Relay(lab.spec(tmp_path), lambda _: ended.set())
    relay.update_peers(lab.PEERS)
    with lab.inside(NODE):
        relay.ensure_running()
        lab.run("ip", "-n", NODE, "link", "set", "flannel0", "down")
        wire.sendto(lab.inner(), (lab.NODE, 8285))
        lab.eventually(lambda: relay.status()["rx_error"] == 1)
        assert relay.ensure_running() == "running"
        lab.run("ip", "-n", NODE, "link", "delete", "flannel0")
        assert ended.wait(5)
        assert relay.ensure_running() == "restarted"
    with closing(lab.udp_socket(NODE, "10.1.5.0", 7000)) as app:
        app.sendto(b"up again", ("10.1.6.2", 5000))
        assert wire.recv(2000).endswith(b"up again")


def test_looking_after_a_right_device_wakes_nobody(relay: Relay) -> None:
    with lab.inside(NODE), closing(socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)) as events:
        events.bind((0, 1 | 0x10 | 0x40))  # RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE
        events.setblocking(False)
        for _ in range(3):
            assert relay.ensure_running() == "running"
        with pytest.raises(BlockingIOError):
            events.recv(65536)
        lab.run("ip", "-n", NODE, "link", "set", "flannel0", "mtu", "1400")
        assert events.recv(65536)


def test_asking_does_not_disturb(tmp_path: Path) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            Relay(lab.spec(tmp_path)).pid()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for _ in range(5):
            relay = started(tmp_path)
            assert relay.stop()
    finally:
        done.set()
        asking.join()


def test_several_queues_carry_several_flows(tmp_path: Path, wire: socket.socket) -> None:
    relay = started(tmp_path, queues=2)
    for number in range(40):
        with closing(lab.udp_socket(NODE, "10.1.5.0", 7001 + number)) as app:
            app.sendto(b"out", ("10.1.6.2", 5000))
            assert wire.recv(2000).endswith(b"out")
            wire.sendto(lab.inner(port=7001 + number), (lab.NODE, 8285))
            assert len(app.recv(2000)) == 32
    assert relay.status()["tx_sent"] == relay.status()["rx_delivered"] == 40


def test_port_in_use_is_said_in_the_relays_own_words(tmp_path: Path) -> None:
    with closing(lab.udp_socket(NODE, lab.NODE, 8285)), lab.inside(NODE):
        with pytest.raises(KernelError, match=r"192\.168\.78\.1:8285: Address already in use"):
            Relay(lab.spec(tmp_path)).ensure_running()
        assert Relay(lab.spec(tmp_path)).pid() == 0


def test_device_keeps_only_what_the_lease_says_and_goes_when_asked(tmp_path: Path) -> None:
    with lab.inside(NODE):
        started(tmp_path).stop()
        moved = started(
            tmp_path, address=IPv4Address("10.2.8.0"), network=IPv4Network("10.2.0.0/16"), mtu=1422, queues=2
        )
        addresses = lab.run("ip", "-4", "-n", NODE, "address", "show", "flannel0")
        routes = lab.run("ip", "-n", NODE, "route", "show", "dev", "flannel0")
        assert "mtu 1422" in addresses
        assert "10.2.8.0/32" in addresses
        assert "10.1.5.0" not in addresses
        assert routes.startswith("10.2.0.0/16 proto 251")
        assert "10.1.0.0" not in routes
        moved.stop()
        assert tun.delete("flannel0")
        assert not tun.delete("flannel0")


def test_memory_is_constant(relay: Relay, wire: socket.socket) -> None:
    packets = 10_000_000 if LONG else 300_000
    pids = [relay.pid(), *lab.children(relay.pid())]
    warm = 0
    burst = b"".join(lab.inner(60, src=f"10.1.6.{host}", port=9) for host in range(2, 66))
    parts, notes = lab.segments(burst, 60)
    sent = 0
    while sent < packets:
        for _ in range(20):
            wire.sendmsg(parts, notes, 0, (lab.NODE, 8285))
            sent += 64
        lab.eventually(lambda expected=sent: sum_received(relay) >= expected)
        warm = warm or lab.resident_kib(pids)
    assert relay.status()["rx_delivered"] == sent
    assert lab.resident_kib(pids) - warm < 512
