"""What the mirror of the nodes makes of an API server's answers, however odd: the server is a script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import pytest

from flannel_ebpf.base.errors import KubeGone, KubeRefused, KubeUnavailable, SourceClosed
from flannel_ebpf.leases.kube import mirror as mirror_module
from flannel_ebpf.leases.kube.client import KubeClient
from flannel_ebpf.leases.kube.mirror import NodeMirror

Step = tuple[str, Any]
"""("list", (place, names)) or ("watch", events); an exception in place of either is raised."""


def node(name: str, place: int, value: str = "") -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(place)}, "value": value}


def event(kind: str, name: str, place: int, value: str = "") -> dict[str, Any]:
    return {"type": kind, "object": node(name, place, value)}


def bookmark(place: int) -> dict[str, Any]:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(place)}}}


class Script:
    """A server that gives these answers in turn, and is closed afterwards; `asked` is what it was asked."""

    server = "https://192.0.2.1"

    def __init__(self, *steps: Step) -> None:
        self._steps = iter(steps)
        self.asked: list[tuple[str, str]] = []

    @contextmanager
    def converse(self) -> Iterator[Script]:
        yield self

    def _next(self, verb: str, place: str) -> Any:
        self.asked.append((verb, place))
        try:
            expected, answer = next(self._steps)
        except StopIteration:
            raise SourceClosed from None
        assert verb == expected
        if isinstance(answer, Exception):
            raise answer
        return answer

    def list(self, _: str, query: Mapping[str, Any], take: Callable[[dict[str, Any]], None]) -> str:
        place, nodes = self._next("list", str(query.get("resourceVersion", "")))
        for one in nodes:
            take(one)
        return str(place)

    def watch(self, _: str, query: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for one in self._next("watch", query["resourceVersion"]):
            if isinstance(one, Exception):
                raise one
            yield one


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE", 0.0)


def followed(*steps: Step) -> tuple[Script, list[dict[str, str]]]:
    """Play the script to its end; return the server, and what was known at every change that was told."""
    server, told = Script(*steps), list[dict[str, str]]()
    mirror = NodeMirror(
        cast("KubeClient", server), lambda one: str(one["value"]), lambda: told.append(mirror.nodes() or {})
    )
    mirror._pause = 0.0
    mirror._run()
    return server, told


LIST: Step = ("list", (10, [node("a", 3), node("b", 7)]))


def test_events_are_followed_from_the_list_on() -> None:
    server, told = followed(
        LIST,
        ("watch", [event("ADDED", "c", 11), event("MODIFIED", "a", 12, "new"), event("DELETED", "b", 13)]),
    )
    assert told == [
        {"a": "", "b": ""},
        {"a": "", "b": "", "c": ""},
        {"a": "new", "b": "", "c": ""},
        {"a": "new", "c": ""},
    ]
    assert server.asked == [("list", "0"), ("watch", "10"), ("watch", "13")]


def test_what_does_not_change_for_us_is_not_told() -> None:
    _, told = followed(LIST, ("watch", [event("MODIFIED", "a", 11), event("DELETED", "z", 12)]))
    assert len(told) == 1


def test_bookmarks_move_the_place() -> None:
    server, told = followed(LIST, ("watch", [bookmark(50)]))
    assert server.asked[-1] == ("watch", "50")
    assert len(told) == 1


@pytest.mark.parametrize("where", ["request", "event"])
def test_a_forgotten_place_is_listed_anew_and_what_vanished_is_gone(where: str) -> None:
    """410, as the answer to the watch, or as an ERROR event in it."""
    gone = KubeGone("too old", 410)
    server, told = followed(
        LIST, ("watch", gone if where == "request" else [gone]), ("list", (40, [node("b", 30)]))
    )
    assert told == [{"a": "", "b": ""}, {"b": ""}]
    assert server.asked == [("list", "0"), ("watch", "10"), ("list", "10"), ("watch", "40")]


@pytest.mark.parametrize(
    "trouble", [KubeRefused("watch: etcdserver: leader changed", 500), KubeUnavailable("broke off")]
)
def test_another_error_goes_on_from_the_same_place(trouble: Exception) -> None:
    server, told = followed(LIST, ("watch", [event("ADDED", "c", 11), trouble]), ("watch", [bookmark(20)]))
    assert server.asked == [("list", "0"), ("watch", "10"), ("watch", "11"), ("watch", "20")]
    assert told[-1] == {"a": "", "b": "", "c": ""}


def test_the_old_list_stays_until_the_new_one_is_complete() -> None:
    _, told = followed(
        LIST, ("watch", KubeGone("too old", 410)), ("list", KubeUnavailable("broke off")), ("list", (40, []))
    )
    assert told == [{"a": "", "b": ""}, {}]


@pytest.mark.parametrize(
    "odd",
    [
        {"type": "ADDED"},
        {"type": "ADDED", "object": None},
        {"object": {}},
        {"type": "MODIFIED", "object": {}},
    ],
)
def test_an_answer_that_is_none_is_listed_anew(odd: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    server, told = followed(LIST, ("watch", [odd]), ("list", (40, [node("a", 3), node("b", 7)])))
    assert ("list", "10") in server.asked
    assert told == [{"a": "", "b": ""}]
    assert "is not what it should be" in caplog.text


def test_a_restored_server_is_asked_for_whatever_it_has() -> None:
    server, _ = followed(
        LIST, ("watch", KubeGone("", 410)), ("list", KubeRefused("too large", 504)), ("list", (5, []))
    )
    assert server.asked == [("list", "0"), ("watch", "10"), ("list", "10"), ("list", ""), ("watch", "5")]


def test_trouble_is_told_once_and_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    refused = KubeUnavailable("Connection refused")
    followed(LIST, *[("watch", refused)] * 5, ("watch", [bookmark(11)]))
    assert caplog.text.count("Connection refused") == 1
    assert caplog.text.count("the nodes are watched again") == 1
