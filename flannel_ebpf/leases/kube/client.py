"""An API server's client over http.client: a few verbs, TLS, credentials that change under way."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

from flannel_ebpf.base.errors import SourceClosed
from flannel_ebpf.leases.kube.access import Access
from flannel_ebpf.leases.kube.conversation import Conversation, Query
from flannel_ebpf.leases.kube.credentials import Credentials


class KubeClient:
    """Speaks with one API server. Safe for threads.

    A list and the watch that continues it share a conversation; every other request has its own, because
    they are rare and a connection that idles dies unnoticed. Files are read once here, which raises
    ConfigError; requests raise KubeUnavailable, KubeRefused.
    """

    def __init__(self, access: Access) -> None:
        self.server = access.server
        self._credentials = Credentials(access)
        self._lock = threading.Lock()
        self._talks: set[Conversation] = set()
        self._closed = False

    def get(self, path: str, query: Query | None = None) -> dict[str, Any]:
        """Return one object."""
        with self.converse() as talk:
            return talk.get(path, query or {})

    def patch(self, path: str, patch: Mapping[str, Any]) -> None:
        """Merge `patch` into one object (a strategic merge patch)."""
        with self.converse() as talk:
            talk.patch(path, patch)

    def converse(self) -> Conversation:
        """Return a connection, made with its first request; the caller closes it."""
        with self._lock:
            if self._closed:
                raise SourceClosed("the API client was closed")
            talk = Conversation(self.server, self._credentials, self._ended)
            self._talks.add(talk)
            return talk

    def reconnect(self) -> None:
        """End every connection: our side of it may be an address that is gone, which nothing tells."""
        with self._lock:
            talks = list(self._talks)
        for talk in talks:
            talk.interrupt()

    def close(self) -> None:
        """End what is under way; whatever comes later raises SourceClosed."""
        with self._lock:
            self._closed = True
        self.reconnect()

    def _ended(self, talk: Conversation) -> None:
        with self._lock:
            self._talks.discard(talk)
