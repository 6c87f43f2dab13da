"""EtcdClient against real servers: TLS, users, failover, and calm while nothing answers."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import (
    ConfigError,
    EtcdError,
    EtcdRefused,
    EtcdUnavailable,
    LeaseConflict,
    SourceClosed,
)
from flannel_ebpf.leases.etcd import EtcdClient, EtcdOptions, Registry, Watch
from tests.netns.etcd_cluster import FROZEN, Certs, EtcdCluster
from tests.polls import eventually

PREFIX = "/coreos.com/network"
TOKEN_TTL = 2


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return Certs.make(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return Certs.make(tmp_path_factory.mktemp("tls") / "strangers")


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory, certs: Certs) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("tls-etcd"), certs=certs, client_auth=True) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def server_tls(tmp_path_factory: pytest.TempPathFactory, certs: Certs) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path_factory.mktemp("server-tls"), certs=certs) as cluster:
        yield cluster


@pytest.fixture
def opened() -> Iterator[Callable[[EtcdOptions], Registry]]:
    clients: list[EtcdClient] = []

    def open_(options: EtcdOptions) -> Registry:
        clients.append(EtcdClient(options))
        return Registry(clients[-1], PREFIX)

    yield open_
    for client in clients:
        client.close()


Open = Callable[[EtcdOptions], Registry]


def refused(ask: Callable[[], object]) -> str:
    with pytest.raises(EtcdError) as caught:
        ask()
    return str(caught.value)


def test_client_certificate_and_authority(tls: EtcdCluster, opened: Open) -> None:
    registry = opened(tls.options())
    registry.set_network_config("{}")
    assert registry.network_config() == "{}"
    for before in ("{}", "as after an answer that was lost"):
        registry.replace_network_config(before, '{"Network": "10.1.0.0/16"}')
    with pytest.raises(LeaseConflict, match="changed by somebody else"):
        registry.replace_network_config("{}", "{}")
    assert registry.network_config() == '{"Network": "10.1.0.0/16"}'


def test_an_authority_alone_is_enough(server_tls: EtcdCluster, opened: Open) -> None:
    options = replace(server_tls.options(), keyfile="", certfile="")
    assert opened(options).snapshot().leases == ()


def test_a_server_of_another_authority_is_not_spoken_to(
    server_tls: EtcdCluster, strangers: Certs, opened: Open
) -> None:
    options = EtcdOptions(server_tls.endpoints, cafile=strangers.path("ca.pem"))
    registry = opened(options)
    with pytest.raises(EtcdUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        registry.network_config()
    with pytest.raises(EtcdUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        opened(EtcdOptions(server_tls.endpoints)).network_config()


def test_a_client_certificate_of_another_authority_is_refused(
    tls: EtcdCluster, strangers: Certs, opened: Open
) -> None:
    ours = tls.options()
    stranger = replace(ours, certfile=strangers.path("client.pem"), keyfile=strangers.path("client.key"))
    for options in (stranger, replace(ours, certfile="", keyfile="")):
        assert "client certificate: --etcd-certfile" in refused(opened(options).network_config)


def test_rotated_certificates_are_used_by_the_next_connection(
    tls: EtcdCluster, strangers: Certs, opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ours = tls.options()
    cert, key = tmp_path / "client.pem", tmp_path / "client.key"

    def rotate(made: Path | str, signed: Path | str) -> None:
        for new, place in ((made, key), (signed, cert)):
            shutil.copy(new, tmp_path / "new")
            (tmp_path / "new").rename(place)

    rotate(strangers.path("client.key"), strangers.path("client.pem"))
    registry = opened(replace(ours, certfile=str(cert), keyfile=str(key)))
    refused(registry.network_config)
    rotate(ours.keyfile, ours.certfile)
    registry.network_config()
    cert.write_text("half of a certif")
    registry.reconnect()
    registry.network_config()
    assert caplog.text.count("the files read before stay in use") == 1


def test_the_libraries_write_no_lines_of_their_own(server_tls: EtcdCluster, strangers: Certs) -> None:
    script = (
        "import sys; from flannel_ebpf.leases.etcd import EtcdClient, EtcdOptions, Registry\n"
        "from flannel_ebpf.base.errors import EtcdError\n"
        "options = EtcdOptions((sys.argv[1],), cafile=sys.argv[2])\n"
        "for _ in range(3):\n"
        "    try: Registry(EtcdClient(options), '/a').network_config()\n"
        "    except EtcdError as error: print(error)\n"
    )
    arguments = [sys.executable, "-c", script, server_tls.endpoints[0], strangers.path("ca.pem")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert done.stdout.count("(--etcd-cafile does not vouch for the server's certificate)") == 3


def test_plain_text_to_a_tls_server_and_tls_to_a_plain_one(
    tmp_path: Path, tls: EtcdCluster, opened: Open
) -> None:
    plain_text = EtcdOptions((tls.endpoints[0].replace("https", "http"),))
    assert "https:// in --etcd-endpoints" in refused(opened(plain_text).network_config)
    with EtcdCluster(tmp_path / "plain") as plain:
        options = replace(tls.options(), endpoints=(plain.endpoints[0].replace("http", "https"),))
        assert "http:// in --etcd-endpoints" in refused(opened(options).network_config)


def test_settings_that_cannot_work_are_config_errors(tmp_path: Path, certs: Certs) -> None:
    here = ("http://127.0.0.1:2379",)
    text = tmp_path / "text"
    text.write_text("hello")
    key, pem = certs.path("client.key"), certs.path("client.pem")
    for options, flag in [
        (EtcdOptions(()), "--etcd-endpoints"),
        (EtcdOptions(("",)), "--etcd-endpoints"),
        (EtcdOptions(("http://127.0.0.1",)), "--etcd-endpoints"),
        (EtcdOptions(("http://127.0.0.1:port",)), "--etcd-endpoints"),
        (EtcdOptions(("ftp://127.0.0.1:2379",)), "--etcd-endpoints"),
        (EtcdOptions(("http://127.0.0.1:2379/v2",)), "--etcd-endpoints"),
        (EtcdOptions(here, keyfile=key), "--etcd-certfile"),
        (EtcdOptions(here, certfile=pem), "--etcd-keyfile"),
        (EtcdOptions(here, cafile="/nonexistent"), "--etcd-cafile"),
        (EtcdOptions(here, cafile=str(text)), "--etcd-cafile"),
        (EtcdOptions(here, certfile=pem, keyfile=certs.path("server.key")), "--etcd-certfile"),
        (EtcdOptions(here, certfile=pem, keyfile=str(text)), "--etcd-certfile"),
        (EtcdOptions(here, password="secret"), "--etcd-username"),
    ]:
        with pytest.raises(ConfigError) as caught:
            EtcdClient(options)
        assert caught.value.source == flag
    assert "secret" not in repr(EtcdOptions(here, username="me", password="secret"))


def test_users_over_tls(tmp_path: Path, certs: Certs, opened: Open) -> None:
    """Login, wrong password, a prefix that is not granted, an expired token, a restarted server."""
    with EtcdCluster(
        tmp_path / "etcd", certs=certs, client_auth=True, options=(f"--auth-token-ttl={TOKEN_TTL}",)
    ) as cluster:
        # a client that was given a user before auth was on
        early = opened(cluster.options(username="flannel", password="secret"))
        early.set_network_config("{}")
        nobody = opened(cluster.options())
        assert nobody.network_config() == "{}"
        options = cluster.enable_auth(PREFIX)
        registry = opened(options)
        for asked in (registry, early):
            assert asked.network_config() == "{}"
            assert asked.snapshot().leases == ()
        with pytest.raises(EtcdRefused, match="permission denied"):  # the user its certificate names
            nobody.network_config()
        with pytest.raises(EtcdRefused, match="invalid user ID or password"):
            opened(replace(options, password="wrong")).network_config()
        with pytest.raises(EtcdRefused, match="permission denied"):
            Registry(registry._client, "/other").network_config()

        time.sleep(TOKEN_TTL + 1.5)  # the server forgets tokens that were not used for their TTL
        assert registry.network_config() == "{}"
        cluster.kill()
        cluster.start()
        assert registry.network_config() == "{}"


def test_a_watch_survives_expired_tokens_and_auth_being_turned_on(tmp_path: Path, opened: Open) -> None:
    with EtcdCluster(tmp_path / "etcd", options=(f"--auth-token-ttl={TOKEN_TTL}",)) as cluster:
        registry = opened(cluster.options(username="flannel", password="secret"))
        woken = threading.Event()
        watch = Watch(registry._client, registry.watched, woken.set)
        watch.start()
        try:
            for change in (
                lambda: None,
                lambda: cluster.enable_auth(PREFIX),
                lambda: time.sleep(TOKEN_TTL + 1.5),
            ):
                change()
                eventually(lambda: watch.connected, "watch stands")
                woken.clear()
                cluster.ctl("put", f"{registry.watched}poke", "x")
                assert woken.wait(30)
            cluster.kill()
            cluster.start()
            woken.clear()
            eventually(lambda: watch.connected, "watch stands again")
            cluster.ctl("put", f"{registry.watched}poke", "y")
            assert woken.wait(30)
        finally:
            watch.stop()


@pytest.fixture
def three(tmp_path: Path) -> Iterator[EtcdCluster]:
    with EtcdCluster(tmp_path / "three", size=3) as cluster:
        yield cluster


def test_requests_move_to_a_living_endpoint(three: EtcdCluster, opened: Open) -> None:
    registry = opened(three.options())
    registry.set_network_config("{}")
    three.members[0].kill()
    eventually(lambda: registry.network_config() == "{}", "answer after a kill")
    three.start()
    three.members[1].freeze()
    for _ in range(20):
        assert registry.network_config() == "{}"
    three.members[1].thaw()


def test_a_member_without_a_leader_is_no_endpoint(three: EtcdCluster, opened: Open) -> None:
    registry = opened(EtcdOptions(three.endpoints[:1]))
    registry.network_config()
    three.members[1].kill()
    three.members[2].kill()
    with pytest.raises(EtcdUnavailable):
        registry.network_config()
    three.start()
    eventually(lambda: registry.network_config() is None, "answer with a leader again", 20)


@pytest.mark.parametrize("fault", ["refused", "frozen"])
def test_everything_down_costs_no_threads(tmp_path: Path, opened: Open, fault: str) -> None:
    """A client that is asked again and again, and a watch, against nothing."""
    with EtcdCluster(tmp_path / "etcd", size=1) as cluster:
        registry = opened(cluster.options())
        watch = Watch(registry._client, registry.watched, lambda: None)
        watch.start()
        eventually(lambda: watch.connected, "watch stands")
        if fault == "refused":
            cluster.kill()
        else:
            cluster.members[0].freeze()
        threads = threading.active_count()
        until = time.monotonic() + FROZEN / 4
        while time.monotonic() < until:
            with pytest.raises(EtcdUnavailable):
                registry.network_config()
            time.sleep(0.2)
        assert threading.active_count() <= threads + 2
        if fault == "frozen":
            cluster.members[0].thaw()
        else:
            cluster.start()
        eventually(lambda: watch.connected, "watch stands again")
        assert registry.network_config() is None
        watch.stop()


def test_close_ends_requests_under_way(tmp_path: Path) -> None:
    with EtcdCluster(tmp_path / "etcd") as cluster:
        client = EtcdClient(cluster.options())
        registry = Registry(client, PREFIX)
        registry.network_config()
        cluster.members[0].freeze()
        failed = threading.Event()

        def ask() -> None:
            with pytest.raises(SourceClosed):
                registry.network_config()
            failed.set()

        threading.Thread(target=ask, daemon=True).start()
        time.sleep(0.2)  # most probably it is under way by now; if not, it finds a closed client
        client.close()
        assert failed.wait(30)
        with pytest.raises(SourceClosed):
            registry.snapshot()
