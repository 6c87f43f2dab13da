"""The relay as a process that the daemon starts, adopts and repairs, with its device and its peers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import closing
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.kernel.netlink import tun
from flannel_ebpf.relay.supervise import Relay
from tests.namespaces import inside
from tests.netns.udp import peer as lab
from tests.netns.udp.relay_node import (
    NODE,
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

LONG = os.environ.get("FLANNEL_TEST_LONG") == "1"


def test_crash_is_said_at_once_and_repaired(tmp_path: Path, wire: socket.socket, app: socket.socket) -> None:
    said: list[str] = []
    ended = threading.Event()

    def on_exit(line: str) -> None:
        said.append(line)
        ended.set()

    relay = Relay(lab.spec(tmp_path), on_exit)
    relay.update_peers(lab.PEERS)
    with inside(NODE):
        assert relay.ensure_running() == "started"
        assert relay.ensure_running() == "running"
        for kill_main in (False, True):
            ended.clear()
            os.kill(relay.pid() if kill_main else lab.children(relay.pid())[1], signal.SIGKILL)
            assert ended.wait(lab.PATIENCE)
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
from tests.netns.udp import peer as lab
relay = Relay(lab.spec(Path(sys.argv[1])))
relay.update_peers(lab.PEERS)
assert relay.ensure_running() == "started"
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_relay_outlives_its_daemon_and_is_adopted(
    tmp_path: Path, wire: socket.socket, app: socket.socket
) -> None:
    with inside(NODE):
        command = [sys.executable, "-c", DAEMON, str(tmp_path)]
        found_here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        daemon = subprocess.run(command, check=False, timeout=60, env=found_here)
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

    eventually(refused, "the relay refuses whom it has no peer for")
    assert successor.stop()


def test_a_relay_that_is_replaced_is_no_crash(tmp_path: Path) -> None:
    """Its settings have changed; whoever watched the old one has nothing to say."""
    said: list[str] = []
    first = Relay(lab.spec(tmp_path), said.append)
    with inside(NODE):
        assert first.ensure_running() == "started"
        watchers = [thread for thread in threading.enumerate() if "relay" in thread.name]
        first.forget()
        second = Relay(lab.spec(tmp_path, port=8286), said.append)
        assert second.ensure_running() == "replaced"
    for thread in watchers:
        thread.join(lab.PATIENCE)
        assert not thread.is_alive()
    assert said == []
    os.kill(second.pid(), signal.SIGKILL)
    eventually(lambda: len(said) == 1, "the new one's end is said")


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

    eventually(got_through, "a datagram gets through")
    assert relay.update_peers({})
    eventually(lambda: not got_through(), "nothing gets through")
    assert relay.pid() == pid


def test_broken_peers_file_changes_nothing(
    relay: Relay, tmp_path: Path, wire: socket.socket, app: socket.socket
) -> None:
    (tmp_path / "new").write_text("{")
    (tmp_path / "new").rename(tmp_path / "peers.json")
    eventually(
        lambda: "peers stay as they are" in (tmp_path / "log").read_text(), "the relay says what it read"
    )
    app.sendto(b"still there", ("10.1.6.2", 5000))
    assert wire.recv(2000).endswith(b"still there")
    assert relay.update_peers(lab.PEERS)


def test_a_deleted_device_is_made_again(tmp_path: Path, wire: socket.socket) -> None:
    ended = threading.Event()
    relay = Relay(lab.spec(tmp_path), lambda _: ended.set())
    relay.update_peers(lab.PEERS)
    with inside(NODE):
        relay.ensure_running()
        lab.run("ip", "-n", NODE, "link", "delete", "flannel0")
        assert ended.wait(lab.PATIENCE)
        assert relay.ensure_running() == "restarted"
    with closing(lab.udp_socket(NODE, "10.1.5.0", 7000)) as app:
        app.sendto(b"up again", ("10.1.6.2", 5000))
        assert wire.recv(2000).endswith(b"up again")


def test_device_keeps_only_what_the_lease_says_and_goes_when_asked(tmp_path: Path) -> None:
    with inside(NODE):
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


def test_port_in_use_is_said_in_the_relays_own_words(tmp_path: Path) -> None:
    with closing(lab.udp_socket(NODE, lab.NODE, 8285)), inside(NODE):
        for _ in range(2):  # in the same words each time, so that the log has them once
            said = r"^the relay did not start: UDP socket 192\.168\.78\.1:8285: Address already in use$"
            with pytest.raises(KernelError, match=said):
                Relay(lab.spec(tmp_path)).ensure_running()
        assert Relay(lab.spec(tmp_path)).pid() == 0


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
        eventually(lambda expected=sent: sum_received(relay) >= expected, "the burst is counted")
        warm = warm or lab.resident_kib(pids)
    assert relay.status()["rx_delivered"] == sent
    assert lab.resident_kib(pids) - warm < 512
