#!/usr/bin/env python3
"""A small HTTP server that stands in for kube-apiserver: the same requests, answers and command line.

It knows what a node agent needs: GET, LIST in pages, WATCH with bookmarks, PATCH, tokens, the rights of
flannel's ClusterRole, an audit log. The tests beside it run against it and, in `make kube`, against the real
server, which so checks it. Paths below /double are for tests: POST /double/forget is a compaction.
"""

from __future__ import annotations

import argparse
import base64
import copy
import csv
import json
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

RULES = {("get", "pods"), *((verb, "nodes") for verb in ("get", "list", "watch")), ("patch", "nodes/status")}
"""flannel's ClusterRole, which the user `flannel` has; groups are ignored, `admin` may do everything."""
BOOKMARK = 1.0
"""Seconds between bookmarks; the real server takes about a minute."""


class Refused(Exception):
    """An answer that is a Status object."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.status = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        }  # fmt: skip


def expired() -> Refused:
    return Refused(410, "Expired", "The provided resource version is too old")


class Store:
    """Objects by collection and name, and what happened to them, numbered by resourceVersion.

    They outlive the server in `file`, what happened does not: as with a kube-apiserver and its etcd.
    """

    def __init__(self, file: Path) -> None:
        self.changed = threading.Condition()
        self._file = file
        kept = json.loads(file.read_text()) if file.exists() else {"revision": 1, "objects": {}}
        self.revision = self.oldest = kept["revision"]
        self._objects: dict[str, dict[str, Any]] = kept["objects"]
        self._events: list[tuple[int, str, str, Any]] = []
        self._pages: dict[int, list[Any]] = {}

    def get(self, collection: str, name: str) -> Any:
        try:
            return self._objects[collection][name]
        except KeyError:
            kind = collection.rpartition("/")[2]
            raise Refused(404, "NotFound", f'{kind} "{name}" not found') from None

    def create(self, collection: str, made: Any) -> Any:
        with self.changed:
            name = made["metadata"]["name"]
            if name in self._objects.get(collection, {}):
                kind = collection.rpartition("/")[2]
                raise Refused(409, "AlreadyExists", f'{kind} "{name}" already exists')
            made["metadata"]["uid"] = str(uuid.uuid4())
            return self._put(collection, "ADDED", made)

    def patch(self, collection: str, name: str, patch: Any) -> Any:
        with self.changed:
            before = self.get(collection, name)
            after = merge(copy.deepcopy(before), patch)
            return before if after == before else self._put(collection, "MODIFIED", after)

    def delete(self, collection: str, name: str) -> Any:
        with self.changed:
            gone = copy.deepcopy(self.get(collection, name))
            del self._objects[collection][name]
            return self._note(collection, "DELETED", gone)

    def _save(self) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps({"revision": self.revision, "objects": self._objects}))
        new.rename(self._file)

    def list(self, collection: str, limit: int, revision: str, token: str) -> Any:
        """Return a list object, all of it when the answer may come from a cache, as Kubernetes 1.34 does."""
        with self.changed:
            if token:
                state, start = json.loads(base64.b64decode(token))
                if state not in self._pages:
                    raise expired()
            else:
                state, start = self.revision, 0
                self._pages[state] = [one for _, one in sorted(self._objects.get(collection, {}).items())]
                if revision.isdigit() and int(revision) > state:
                    raise Refused(504, "Timeout", f"Too large resource version: {revision}")
            items = self._pages[state]
        end = start + limit if limit and revision != "0" else len(items)
        metadata = {"resourceVersion": str(state)}
        if end < len(items):
            metadata["continue"] = base64.b64encode(json.dumps([state, end]).encode()).decode()
            metadata["remainingItemCount"] = str(len(items) - end)
        kind = collection.rpartition("/")[2].removesuffix("s").capitalize() + "List"
        return {"kind": kind, "apiVersion": "v1", "metadata": metadata, "items": items[start:end]}

    def watch(self, collection: str, since: int, end: float, bookmarks: bool) -> Iterator[Any]:
        """Yield events after revision `since` until the clock says `end`."""
        at = since
        bookmark = time.monotonic() + BOOKMARK
        while time.monotonic() < end:
            with self.changed:
                if at < self.oldest:
                    yield {"type": "ERROR", "object": expired().status}
                    return
                due = [
                    (kind, one)
                    for number, place, kind, one in self._events
                    if number > at and place == collection
                ]
                at = self.revision
                if not due:
                    self.changed.wait(0.1)
            yield from ({"type": kind, "object": one} for kind, one in due)
            if bookmarks and time.monotonic() > bookmark:
                bookmark = time.monotonic() + BOOKMARK
                metadata = {"resourceVersion": str(at), "creationTimestamp": None}
                yield {
                    "type": "BOOKMARK",
                    "object": {"kind": "Node", "apiVersion": "v1", "metadata": metadata},
                }

    def forget(self) -> None:
        """Forget everything that happened, as a compaction does."""
        with self.changed:
            self.revision += 1
            self.oldest = self.revision
            self._events.clear()
            self._pages.clear()
            self.changed.notify_all()

    def _put(self, collection: str, kind: str, what: Any) -> Any:
        self._objects.setdefault(collection, {})[what["metadata"]["name"]] = what
        return self._note(collection, kind, what)

    def _note(self, collection: str, kind: str, what: Any) -> Any:
        self.revision += 1
        what["metadata"]["resourceVersion"] = str(self.revision)
        self._events.append((self.revision, collection, kind, what))
        self._save()
        self.changed.notify_all()
        return what


def merge(into: Any, patch: Any) -> Any:
    """Apply a strategic merge patch: null deletes, and of all lists only conditions are merged, by type."""
    for key, value in patch.items():
        if value is None:
            into.pop(key, None)
        elif key == "conditions":
            by_type = {one["type"]: one for one in into.get(key, [])}
            into[key] = list(
                (by_type | {one["type"]: {**by_type.get(one["type"], {}), **one} for one in value}).values()
            )
        elif isinstance(value, dict):
            into[key] = merge(into.get(key) or {}, value)
        else:
            into[key] = value
    return into


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        self._serve(b"")

    def do_POST(self) -> None:
        self._serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_PATCH = do_DELETE = do_POST  # noqa: N815 - http.server's names

    def _serve(self, body: bytes) -> None:
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        if url.path in ("/readyz", "/livez"):
            self._answer(200, "ok")
        elif url.path.startswith("/double/"):
            getattr(self.server.store, url.path.removeprefix("/double/").replace("-", "_"))()
            self._answer(200, {})
        else:
            try:
                self._request(url.path, query, body)
            except Refused as refusal:
                self._answer(refusal.code, refusal.status)

    def _request(self, path: str, query: dict[str, str], body: bytes) -> None:
        collection, name, subresource = split(path)
        resource = collection.rpartition("/")[2] + (f"/{subresource}" if subresource else "")
        verb = {"GET": "get" if name else "watch" if query.get("watch") else "list", "POST": "create"}.get(
            self.command, self.command.lower()
        )
        self._audited = {
            "verb": verb,
            "requestURI": self.path,
            "objectRef": {"resource": resource, "name": name},
        }
        user = self.server.users.get(self.headers.get("Authorization", "").removeprefix("Bearer "))
        self._audited["user"] = {"username": user}
        if user is None:
            raise Refused(401, "Unauthorized", "Unauthorized")
        if user != "admin" and not (user == self.server.agent and (verb, resource) in RULES):
            what = f'{resource.partition("/")[0]} "{name}"' if name else resource
            raise Refused(
                403, "Forbidden",
                f'{what} is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "" '
                "at the cluster scope",
            )  # fmt: skip
        store = self.server.store
        match verb:
            case "get":
                self._answer(200, store.get(collection, name))
            case "list":
                found = store.list(
                    collection,
                    int(query.get("limit", 0)),
                    query.get("resourceVersion", ""),
                    query.get("continue", ""),
                )
                self._answer(200, found)
            case "watch":
                self._watch(collection, query)
            case "create":
                self._answer(201, store.create(collection, json.loads(body)))
            case "patch":
                self._answer(200, store.patch(collection, name, json.loads(body)))
            case "delete":
                self._answer(200, store.delete(collection, name))

    def _watch(self, collection: str, query: dict[str, str]) -> None:
        self._head(200, "Transfer-Encoding", "chunked")
        end = time.monotonic() + float(query.get("timeoutSeconds", 1800))
        bookmarks = query.get("allowWatchBookmarks") == "true"
        events = self.server.store.watch(collection, int(query.get("resourceVersion", 0)), end, bookmarks)
        for event in events:
            line = json.dumps(event).encode() + b"\n"
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, code: int, what: Any) -> None:
        body = (what if isinstance(what, str) else json.dumps(what)).encode()
        self._head(code, "Content-Length", str(len(body)))
        self.wfile.write(body)

    def _head(self, code: int, header: str, value: str) -> None:
        audited = self.__dict__.pop("_audited", None)
        if audited:
            stage = "ResponseStarted" if header == "Transfer-Encoding" else "ResponseComplete"
            self.server.audit({**audited, "stage": stage, "responseStatus": {"code": code}})
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header(header, value)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass


def split(path: str) -> tuple[str, str, str]:
    """Return collection, name and subresource of an object's or a collection's path."""
    parts = path.strip("/").split("/")
    head = 2 if parts[0] == "api" else 3
    if len(parts) > head + 2 and parts[head] == "namespaces":
        head += 2
    name, subresource = (*parts[head + 1 :], "", "")[:2]
    return "/" + "/".join(parts[: head + 1]), name, subresource


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, options: argparse.Namespace) -> None:
        folder = Path(options.cert_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.store = Store(folder / "objects.json")
        with Path(options.token_auth_file).open() as file:
            self.users = {row[0]: row[1] for row in csv.reader(file) if row}
        self.agent = self.users.get("flannel", "")
        self._audit_log = options.audit_log_path
        super().__init__((options.bind_address, options.secure_port), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(folder, options.bind_address))
        self._tls = context

    def get_request(self) -> tuple[Any, Any]:
        plain, address = super().get_request()
        return self._tls.wrap_socket(plain, server_side=True, do_handshake_on_connect=False), address

    def audit(self, line: Any) -> None:
        if self._audit_log:
            with Path(self._audit_log).open("a") as log:
                log.write(json.dumps(line) + "\n")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away is no error."""


def certificate(folder: Path, address: str) -> tuple[Path, Path]:
    """Make a certificate of its own where there is none yet, as kube-apiserver does."""
    crt, key = folder / "apiserver.crt", folder / "apiserver.key"
    if not crt.exists():
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=double", "-addext", f"subjectAltName=IP:{address}",
             "-keyout", str(key), "-out", str(crt)],
            check=True, capture_output=True,
        )  # fmt: skip
    return crt, key


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind-address", default="127.0.0.1")
    parser.add_argument("--secure-port", type=int, default=6443)
    parser.add_argument("--token-auth-file", required=True)
    parser.add_argument("--cert-dir", required=True)
    parser.add_argument("--audit-log-path")
    options, _ = parser.parse_known_args(arguments)
    Server(options).serve_forever()


if __name__ == "__main__":
    main(sys.argv[1:])
