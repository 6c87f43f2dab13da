"""One relay with a real TUN, the wire to its peer, and an application; for the tests of one file."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from flannel_ebpf.relay.supervise import Relay
from tests.namespaces import inside
from tests.netns.udp import peer as lab

PREFIX = f"rly{os.getpid() % 10000}"
NODE, PEER = f"{PREFIX}a", f"{PREFIX}b"


@pytest.fixture(scope="module", autouse=True)
def namespaces() -> Iterator[None]:
    with lab.two_namespaces(PREFIX):
        yield


def started(folder: Path, **changes: object) -> Relay:
    relay = Relay(lab.spec(folder, **changes))
    relay.update_peers(lab.PEERS)
    with inside(NODE):
        relay.ensure_running()
    return relay


@pytest.fixture(autouse=True)
def stopped_in_the_end(tmp_path: Path) -> Iterator[None]:
    yield
    Relay(lab.spec(tmp_path)).stop()


@pytest.fixture
def relay(tmp_path: Path) -> Relay:
    return started(tmp_path)


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """The peer's end, at the tunnel's port."""
    with closing(lab.udp_socket(PEER, lab.PEER, 8285)) as sock:
        yield sock


@pytest.fixture
def app() -> Iterator[socket.socket]:
    """An application on the node, at the TUN's own address."""
    with closing(lab.udp_socket(NODE, "10.1.5.0", 7000)) as sock:
        sock.setsockopt(socket.IPPROTO_IP, 12, 1)  # IP_RECVTTL
        yield sock


def sum_received(relay: Relay) -> int:
    """Return how many datagrams the relay has counted, for whatever reason."""
    return sum(n for name, n in relay.status().items() if name.startswith("rx_") and name != "rx_bytes")
