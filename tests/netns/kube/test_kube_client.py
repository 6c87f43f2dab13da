"""The API client and its mirror of the nodes: pages, watches, gaps, credentials, refusals.

They run on node n1, so that its uplink can be cut while the server lives.
"""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

from flannel_ebpf.base.errors import (
    ConfigError,
    KubeError,
    KubeGone,
    KubeRefused,
    KubeUnavailable,
    SourceClosed,
)
from flannel_ebpf.lab import Lab, netns
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.kube_server import SERVER
from flannel_ebpf.leases.kube.access import Access, Pem
from flannel_ebpf.leases.kube.client import KubeClient
from flannel_ebpf.leases.kube.mirror import NODES, NodeMirror
from tests.netns.kube.cluster import kill_server
from tests.polls import eventually

T = TypeVar("T")
CIDR = "10.9.0.0/24"


def access(lab: Lab, **changes: Any) -> Access:
    return Access(SERVER, "test", **{"ca": Pem(lab.kube.certificate), "token": "flannel", **changes})


def on_n1(lab: Lab, function: Callable[[], T]) -> T:
    return netns.call_inside(lab.node("n1").ns, function)


def refusal(lab: Lab, **changes: Any) -> KubeError:
    """What the client says of a list with other credentials than those that are right."""
    client = KubeClient(access(lab, **changes))
    with pytest.raises(KubeError) as caught:
        on_n1(lab, lambda: client.get(NODES, {"limit": 1}))
    return caught.value


def add(lab: Lab, name: str, **annotations: str) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"podCIDR": CIDR, "podCIDRs": [CIDR]},
    }
    lab.kube.request("POST", NODES, node)


def annotate(lab: Lab, name: str, **annotations: str | None) -> None:
    lab.kube.request("PATCH", f"{NODES}/{name}/status", {"metadata": {"annotations": annotations}})


def summary(node: Mapping[str, Any]) -> tuple[Any, ...]:
    return node["spec"]["podCIDR"], (node["metadata"].get("annotations") or {}).get("a")


class Watched:
    """A mirror that runs on n1; `changes` counts how often it told of one."""

    def __init__(self, lab: Lab) -> None:
        self.changes = 0
        self.client = KubeClient(access(lab))
        self.mirror = NodeMirror(self.client, summary, self._changed)

    def _changed(self) -> None:
        self.changes += 1

    def sees(self, name: str, value: str | None = None) -> bool:
        return (self.mirror.nodes() or {}).get(name) == (CIDR, value)

    def lacks(self, name: str) -> bool:
        nodes = self.mirror.nodes()
        return nodes is not None and name not in nodes


@contextmanager
def watching(lab: Lab) -> Iterator[Watched]:
    watched = Watched(lab)
    on_n1(lab, watched.mirror.start)
    try:
        eventually(lambda: watched.mirror.nodes() is not None, "the first list")
        yield watched
    finally:
        watched.client.close()
        watched.mirror.stop()


def test_a_list_comes_in_pages(kube_lab: Lab) -> None:
    for number in range(7):
        add(kube_lab, f"p{number}")
    found: list[str] = []
    with KubeClient(access(kube_lab)).converse() as talk:
        revision = on_n1(
            kube_lab, lambda: talk.list(NODES, {"limit": 2}, lambda it: found.append(it["metadata"]["name"]))
        )
    assert found == ["n1", "n2", *(f"p{number}" for number in range(7))]
    assert int(revision) > 0
    asked = [
        one["requestURI"]
        for one in kube_lab.kube.requests()
        if one["verb"] == "list" and "limit=2" in one["requestURI"]
    ]
    assert len(asked) == 5
    assert all("continue=" in uri for uri in asked[1:])


def test_what_changes_is_seen_and_nothing_else_wakes(kube_lab: Lab) -> None:
    with watching(kube_lab) as node:
        assert not node.sees("w1")
        add(kube_lab, "w1", a="1")
        eventually(lambda: node.sees("w1", "1"), "a new node")
        annotate(kube_lab, "w1", a="2")
        eventually(lambda: node.sees("w1", "2"), "another annotation")
        before = node.changes
        annotate(kube_lab, "w1", b="a kubelet writes every five minutes")
        kube_lab.kube.request(
            "PATCH", f"{NODES}/n2/status", {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        )
        annotate(kube_lab, "w1", a=None)
        eventually(lambda: node.sees("w1"), "an annotation that is gone")
        assert node.changes == before + 1
        kube_lab.kube.request("DELETE", f"{NODES}/w1")
        eventually(lambda: node.lacks("w1"), "a node that is gone")


def test_what_vanished_while_the_server_was_away_is_gone(
    kube_lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """The restarted server does not know the place where the watch was: everything is listed anew."""
    caplog.set_level(logging.INFO)
    add(kube_lab, "v1", a="1")
    add(kube_lab, "v2", a="1")
    with watching(kube_lab) as node:
        with cut_off(kube_lab, "n1"):
            kube_lab.kube.request("DELETE", f"{NODES}/v1")
            annotate(kube_lab, "v2", a="2")
            kill_server(kube_lab)
            kube_lab.kube.start()
            assert node.sees("v1", "1"), "the last state stays"
        node.client.reconnect()
        eventually(lambda: node.lacks("v1") and node.sees("v2", "2"), "the new list", within=60)
    assert "listed anew" in caplog.text


def test_a_server_that_restarts_is_found_again_and_told_once(
    kube_lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with watching(kube_lab) as node:
        kill_server(kube_lab)
        eventually(lambda: "not watched" in caplog.text, "a word about it")
        kube_lab.kube.start()
        add(kube_lab, "r1", a="1")
        eventually(lambda: node.sees("r1", "1"), "what was written since", within=60)
    for trouble in caplog.text.split("the nodes are watched again"):
        told = [line.partition("not watched")[2] for line in trouble.splitlines() if "not watched" in line]
        assert len(set(told)) == len(told), "broken off, refused, not ready yet: each is said once"


def test_a_place_that_is_forgotten_is_refused_as_gone(kube_lab: Lab) -> None:
    kill_server(kube_lab)
    kube_lab.kube.start()
    with KubeClient(access(kube_lab)).converse() as talk, pytest.raises(KubeGone):
        on_n1(kube_lab, lambda: list(talk.watch(NODES, {"resourceVersion": 1, "timeoutSeconds": 2})))


def test_a_place_that_does_not_exist_yet_costs_one_more_try(kube_lab: Lab) -> None:
    """A restored server has not come as far as its clients: it answers 504, and is asked for what it has."""
    node = Watched(kube_lab)
    node.mirror._not_older = "99999999"
    on_n1(kube_lab, node.mirror.start)
    eventually(node.mirror.nodes, "a list", within=30)
    node.client.close()
    node.mirror.stop()


def test_a_watch_ends_when_asked_to_and_bookmarks_keep_the_place(kube_lab: Lab, is_double: bool) -> None:
    with KubeClient(access(kube_lab)).converse() as talk:
        place = on_n1(kube_lab, lambda: talk.list(NODES, {"limit": 9}, lambda _: None))
        query = {"resourceVersion": place, "timeoutSeconds": 3}
        events = on_n1(kube_lab, lambda: list(talk.watch(NODES, query)))
    assert {event["type"] for event in events} <= {"BOOKMARK"}
    assert events or not is_double, (
        "the real server says its first bookmark before it ends the watch, or not at all"
    )


def test_closing_ends_a_watch_at_once(kube_lab: Lab) -> None:
    with watching(kube_lab) as node:
        start = time.monotonic()
        node.client.close()
        node.mirror.stop()
        assert time.monotonic() - start < 5
        with pytest.raises(SourceClosed):
            node.client.get(NODES)


def test_a_token_is_read_again_when_it_is_refused(kube_lab: Lab, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("expired\n")
    client = KubeClient(access(kube_lab, token="", token_file=token))
    token.write_text("flannel\n")
    assert on_n1(kube_lab, lambda: client.get(f"{NODES}/n1"))["metadata"]["name"] == "n1"
    token.unlink()  # the kubelet replaces it: what was read last stays in use
    assert on_n1(kube_lab, lambda: client.get(f"{NODES}/n2"))["metadata"]["name"] == "n2"


def test_a_wrong_token(kube_lab: Lab) -> None:
    error = refusal(kube_lab, token="wrong")
    assert isinstance(error, KubeRefused)
    assert "401 Unauthorized; the credentials of test are not known there, or have expired" in str(error)


def test_a_right_that_is_missing_is_named(kube_lab: Lab) -> None:
    error = refusal(kube_lab, token="nobody")
    assert isinstance(error, KubeRefused)
    assert 'User "nobody" cannot list resource "nodes"' in str(error)
    client = KubeClient(access(kube_lab, token="nobody"))
    with pytest.raises(KubeRefused, match=r'nodes "n1" is forbidden.*cannot patch resource "nodes/status"'):
        on_n1(kube_lab, lambda: client.patch(f"{NODES}/n1/status", {"metadata": {"annotations": {"a": "1"}}}))


def test_an_object_that_is_not_there(kube_lab: Lab) -> None:
    client = KubeClient(access(kube_lab))
    with pytest.raises(KubeRefused, match='404 nodes "n9" not found'):
        on_n1(kube_lab, lambda: client.get(f"{NODES}/n9"))


def test_a_stranger_for_a_server(kube_lab: Lab, tmp_path: Path) -> None:
    other = self_signed(tmp_path, 2)
    error = refusal(kube_lab, ca=Pem(other))
    assert isinstance(error, KubeUnavailable)
    assert "its certificate is not accepted" in str(error)
    assert on_n1(
        kube_lab, lambda: KubeClient(access(kube_lab, ca=Pem(), insecure=True)).get(NODES, {"limit": 1})
    )


def test_an_authority_that_is_replaced_is_read_for_the_next_connection(kube_lab: Lab, tmp_path: Path) -> None:
    """The kubelet writes the new one; what runs goes on, and a file broken meanwhile changes nothing."""
    ca = tmp_path / "mounted.crt"
    ca.write_bytes(self_signed(tmp_path, 2).read_bytes())
    client = KubeClient(access(kube_lab, ca=Pem(ca)))
    with pytest.raises(KubeUnavailable, match="its certificate is not accepted"):
        on_n1(kube_lab, lambda: client.get(f"{NODES}/n1"))
    ca.write_bytes(kube_lab.kube.certificate.read_bytes())
    assert on_n1(kube_lab, lambda: client.get(f"{NODES}/n1"))["metadata"]["name"] == "n1"
    ca.write_text("half a file")
    client.reconnect()
    assert on_n1(kube_lab, lambda: client.get(f"{NODES}/n2"))["metadata"]["name"] == "n2"


def test_a_certificate_that_has_expired(kube_lab: Lab, tmp_path: Path) -> None:
    """One line says so, with the server's name."""
    certificate = expired(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    with on_n1(kube_lab, lambda: socket.create_server(("127.0.0.1", 0))) as server:
        thread = threading.Thread(target=handshake, args=(server, context))
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        client = KubeClient(Access(url, "test", ca=Pem(certificate)))
        with pytest.raises(KubeUnavailable, match=r"its certificate is not accepted.*expired") as caught:
            on_n1(kube_lab, lambda: client.get(NODES))
        thread.join()
    assert str(caught.value).startswith(url)
    assert "\n" not in str(caught.value)


def handshake(server: socket.socket, context: ssl.SSLContext) -> None:
    plain, _ = server.accept()
    with suppress(OSError), context.wrap_socket(plain, server_side=True):
        pass


def test_a_server_that_is_not_there(kube_lab: Lab) -> None:
    client = KubeClient(Access("https://192.168.64.254:1", "test", ca=Pem(kube_lab.kube.certificate)))
    with pytest.raises(KubeUnavailable, match=r"https://192\.168\.64\.254:1: Connection refused"):
        on_n1(kube_lab, lambda: client.get(NODES))


@pytest.mark.parametrize("broken", ["ca", "certificate", "token_file"])
def test_files_that_cannot_be_used_are_named_at_once(tmp_path: Path, broken: str) -> None:
    path = tmp_path / "broken"
    path.write_text("" if broken == "token_file" else "no PEM")
    value = path if broken == "token_file" else Pem(path)
    with pytest.raises(ConfigError, match=r"token file|PEM") as caught:
        KubeClient(Access("https://192.0.2.1", "the kubeconfig", **{broken: value}))
    assert "\n" not in str(caught.value)


@contextmanager
def cut_off(lab: Lab, name: str) -> Iterator[None]:
    """The node's cable is pulled out of the switch: it still has its routes."""
    link = ["ip", "-n", lab.spec.switch_ns, "link", "set", name]
    run([*link, "down"])
    try:
        yield
    finally:
        run([*link, "up"])


def self_signed(folder: Path, days: int) -> Path:
    path = folder / "ca.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", str(days), "-subj", "/CN=other", "-keyout", str(folder / "key.pem"), "-out", str(path)],
        check=True, capture_output=True,
    )  # fmt: skip
    return path


def expired(folder: Path) -> Path:
    """A certificate whose last day was yesterday, which `openssl req` alone makes not; its key: key.pem."""
    made = (
        "openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=expired"
        " -addext subjectAltName=IP:127.0.0.1 -keyout key.pem |"
        " openssl x509 -req -signkey key.pem -days -1 -copy_extensions copyall -out expired.pem"
    )
    subprocess.run(["sh", "-c", made], cwd=folder, check=True, capture_output=True)
    return folder / "expired.pem"
