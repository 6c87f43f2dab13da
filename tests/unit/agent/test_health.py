from __future__ import annotations

import http.client
import math
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter

from flannel_ebpf.agent import supervisor
from flannel_ebpf.agent.health import MOST_CLIENTS, HealthServer
from flannel_ebpf.base.errors import ConfigError
from tests.polls import eventually

READY = [False]


@pytest.fixture
def server() -> Iterator[HealthServer]:
    READY[0] = False
    registry = CollectorRegistry()
    Counter("renewals", "lease renewals", registry=registry).inc(3)
    with HealthServer("127.0.0.1", 0, lambda: READY[0], registry) as running:
        yield running


def ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = http.client.HTTPConnection(host, port, timeout=10)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_health_is_always_good(server: HealthServer) -> None:
    assert ask(server.port, "/healthz") == (200, "flanneld is running")
    assert ask(server.port, "/healthz?verbose=1") == (200, "flanneld is running")
    assert ask(server.port, "/healthz", "HEAD") == (200, "")


def test_readiness_follows_the_daemon(server: HealthServer) -> None:
    assert ask(server.port, "/readyz") == (503, "flanneld is not ready yet")
    READY[0] = True
    assert ask(server.port, "/readyz") == (200, "flanneld is ready")


def test_metrics_are_those_of_the_registry(server: HealthServer) -> None:
    status, text = ask(server.port, "/metrics")
    assert status == 200
    assert "renewals_total 3.0" in text


def test_without_a_registry_there_are_no_metrics() -> None:
    with HealthServer("127.0.0.1", 0, lambda: True) as server:
        assert ask(server.port, "/metrics")[0] == 404
        assert ask(server.port, "/elsewhere")[0] == 404


@pytest.mark.parametrize(("address", "hosts"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"])])
def test_it_listens_on_addresses_of_either_kind(address: str, hosts: list[str]) -> None:
    with HealthServer(address, 0, lambda: True) as server:
        assert [ask(server.port, "/readyz", host=host)[0] for host in hosts] == [200] * len(hosts)


def test_a_silent_client_does_not_keep_others_waiting(server: HealthServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)):
        assert ask(server.port, "/healthz")[0] == 200


def test_a_rude_client_leaves_no_trace_on_stderr(
    server: HealthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # close sends RST
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\nrubbish \xff\r\n\r\n")
    assert ask(server.port, "/healthz")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_taken_address_is_a_config_error(server: HealthServer) -> None:
    with pytest.raises(ConfigError, match=rf"--metrics-listen: '127\.0\.0\.1:{server.port}'.*in use"):
        HealthServer("127.0.0.1", server.port, lambda: True, source="--metrics-listen")


def test_a_foreign_address_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"--healthz-ip and --healthz-port: '192\.0\.2\.1:0'"):
        HealthServer("192.0.2.1", 0, lambda: True)


def test_closing_frees_the_port(server: HealthServer) -> None:
    with HealthServer("127.0.0.1", 0, lambda: True) as first:
        port = first.port
    with HealthServer("127.0.0.1", port, lambda: True):
        assert ask(port, "/readyz")[0] == 200


def test_a_flood_of_silent_clients_keeps_no_probe_out_and_takes_few_threads(server: HealthServer) -> None:
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(300)]
    try:
        assert ask(server.port, "/healthz")[0] == 200
        eventually(lambda: threading.active_count() - before <= MOST_CLIENTS, "few threads serve the flood")
    finally:
        for one in silent:
            one.close()


def test_a_server_without_descriptors_waits_for_one(
    server: HealthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    accept, refused = socket.socket.accept, [3]

    def accept_or_not(self: socket.socket) -> tuple[socket.socket, object]:
        if refused[0]:
            refused[0] -= 1
            raise OSError(24, "Too many open files")
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", accept_or_not)
    assert ask(server.port, "/healthz")[0] == 200
    assert not refused[0]


def test_the_supervisor_hears_each_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(place))
        monkeypatch.setenv("NOTIFY_SOCKET", str(place))
        supervisor.notify("READY=1", "STATUS=3 peers")
        assert channel.recv(100) == b"READY=1\nSTATUS=3 peers"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    supervisor.notify("WATCHDOG=1")


@pytest.mark.parametrize(
    ("micros", "pid", "seconds"),
    [("60000000", "", 30.0), ("", "", math.inf), ("60000000", "1", math.inf), ("soon", "", math.inf)],
)
def test_the_watchdog_is_told_twice_as_often_as_it_asks(
    micros: str, pid: str, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", micros)
    monkeypatch.setenv("WATCHDOG_PID", pid or str(os.getpid()))
    assert supervisor.watchdog_seconds() == seconds
