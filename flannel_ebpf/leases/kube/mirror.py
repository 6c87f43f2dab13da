"""The cluster's nodes as the API server tells them: one list, then a watch from there on, for ever.

What a reflector does (kubernetes.io/docs/reference/using-api/api-concepts, "efficient detection of
changes"): bookmarks keep the place when nothing happens, a watch that ends goes on from it, and when the
server no longer remembers that place, everything is listed again. Until the new list is complete, the old
one stays.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, Generic, TypeVar

from flannel_ebpf.base import tally
from flannel_ebpf.base.errors import KubeError, KubeGone, SourceClosed
from flannel_ebpf.base.say_once import SayOnce
from flannel_ebpf.leases.kube.client import KubeClient
from flannel_ebpf.leases.kube.conversation import Conversation

log = logging.getLogger(__name__)

NODES = "/api/v1/nodes"
PAGE = 100
"""Nodes asked for at once; a server that answers from its cache may send all."""
WATCH_SECONDS = 300, 600
"""The server ends a watch after a time drawn from these, so that not all come back together."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
"""Seconds between attempts, doubling, and up to half as long again: after an outage all nodes ask."""

T = TypeVar("T")


class NodeMirror(Generic[T]):
    """Keeps what `parse` makes of each node object; what it makes must be comparable.

    `on_change` is called on the mirror's thread after the first list and after every change.
    """

    def __init__(
        self, client: KubeClient, parse: Callable[[Mapping[str, Any]], T], on_change: Callable[[], None]
    ) -> None:
        self._client = client
        self._parse = parse
        self._on_change = on_change
        self._nodes: dict[str, T] | None = None
        self._place = ""
        self._not_older = "0"  # the first list may come from any server's cache
        self._pause = FIRST_PAUSE
        self._trouble = SayOnce(log)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="nodes", daemon=True)

    def start(self) -> None:
        """Start listing and watching."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, once the client is closed."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def nodes(self) -> dict[str, T] | None:
        """Return all nodes by name, None before the first list is complete."""
        nodes = self._nodes
        return None if nodes is None else nodes.copy()  # which no other thread can interrupt

    def node(self, name: str) -> T | None:
        """Return one node, None when there is none or nothing is known yet."""
        return (self._nodes or {}).get(name)

    def _run(self) -> None:
        while not self._stopped.is_set():
            begun = time.monotonic()
            try:
                with self._client.converse() as talk:
                    if not self._place:
                        self._list(talk)
                    self._watch(talk)
                if time.monotonic() < begun + 1.0:
                    self._wait("the API server ended the watch at once")
            except SourceClosed:
                return
            except KubeGone as error:
                log.info("the nodes are listed anew: %s", error)
                self._place = ""
                self._wait()
            except KubeError as error:
                if error.code == HTTPStatus.GATEWAY_TIMEOUT:  # a restored server is not that far yet
                    self._not_older = ""
                self._wait(str(error))
            except (LookupError, TypeError, AttributeError) as error:
                self._place = ""
                self._wait(f"the API server's answer is not what it should be: {error!r}")

    def _wait(self, why: str = "") -> None:
        """Pause before the next attempt."""
        seconds = self._pause * random.uniform(1.0, 1.5)  # noqa: S311 - spreads load, guards nothing
        self._pause = min(self._pause * 2, LONGEST_PAUSE)
        if why and not self._stopped.is_set():
            self._trouble.say(f"the nodes are not watched, what is known of them stays: {why}")
        self._stopped.wait(seconds)

    def _list(self, talk: Conversation) -> None:
        """Read all nodes, at least as new as what was seen before; see PAGE for how many at once."""
        listed: dict[str, T] = {}

        def take(node: dict[str, Any]) -> None:
            listed[node["metadata"]["name"]] = self._parse(node)

        query: dict[str, str | int] = {"limit": PAGE}
        if self._not_older:
            query |= {"resourceVersion": self._not_older, "resourceVersionMatch": "NotOlderThan"}
        self._reached(talk.list(NODES, query, take))
        before, self._nodes = self._nodes, listed
        log.info("%d nodes listed by %s", len(listed), self._client.server)
        if listed != before:
            self._on_change()

    def _watch(self, talk: Conversation) -> None:
        """Follow the nodes until the server ends the watch."""
        nodes = self._nodes
        if nodes is None:
            return
        seconds = random.randint(*WATCH_SECONDS)  # noqa: S311 - likewise
        tally.count("kube_watches")
        for event in talk.watch(NODES, {"resourceVersion": self._place, "timeoutSeconds": seconds}):
            metadata = event["object"]["metadata"]
            name = metadata.get("name", "")
            before = nodes.get(name)
            match event["type"]:
                case "ADDED" | "MODIFIED":
                    nodes[name] = self._parse(event["object"])
                case "DELETED":
                    nodes.pop(name, None)
            self._reached(metadata["resourceVersion"])
            if nodes.get(name) != before:
                self._on_change()

    def _reached(self, place: str) -> None:
        self._place = self._not_older = place
        self._pause = FIRST_PAUSE
        self._trouble.over("the nodes are watched again")
