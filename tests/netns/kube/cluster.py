"""A cluster's node objects, as tests look at them and alter them."""

from __future__ import annotations

import signal
import socket
from collections import Counter
from typing import Any

from flannel_ebpf.lab import Lab, Node, netns
from flannel_ebpf.lab.kube_server import AGENT, PORT
from flannel_ebpf.lab.spec import ETCD_IP
from tests.polls import eventually

NODES = "/api/v1/nodes"
PREFIX = "flannel.alpha.coreos.com/"


def notes(lab: Lab, name: str) -> dict[str, str]:
    """flannel's annotations of a node, without their prefix."""
    found = lab.kube.request("GET", f"{NODES}/{name}")["metadata"].get("annotations") or {}
    return {key.removeprefix(PREFIX): text for key, text in found.items() if key.startswith(PREFIX)}


def annotate(lab: Lab, name: str, **changes: str | None) -> None:
    """Write flannel's annotations of a node, None to delete one; underscores stand for dashes."""
    named = {PREFIX + key.replace("_", "-"): text for key, text in changes.items()}
    lab.kube.request("PATCH", f"{NODES}/{name}/status", {"metadata": {"annotations": named}})


def add_node(lab: Lab, name: str, cidr: str | None, **annotations: str) -> None:
    """Make a node object; `annotations` are flannel's."""
    named = {PREFIX + key.replace("_", "-"): text for key, text in annotations.items()}
    node: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": name}}
    if named:
        node["metadata"]["annotations"] = named
    if cidr:
        node["spec"] = {"podCIDR": cidr, "podCIDRs": [cidr]}
    lab.kube.request("POST", NODES, node)


def add_peer(lab: Lab, number: int) -> str:
    """Make the node object of a peer that does not exist; return its subnet."""
    subnet = f"10.1.{number}.0/24"
    data = f'{{"VNI":1,"VtepMAC":"02:00:00:00:00:{number:02x}"}}'
    add_node(
        lab, f"peer{number}", subnet, kube_subnet_manager="true", backend_type="vxlan",
        backend_data=data, public_ip=f"192.168.64.{number}",
    )  # fmt: skip
    return subnet


def delete(lab: Lab, name: str) -> None:
    lab.kube.request("DELETE", f"{NODES}/{name}")


def asked(lab: Lab, name: str, since: int = 0) -> Counter[str]:
    """What the agents asked since the audit log had `since` lines: verb and resource -> how often.

    Of requests for one node only those for node `name` count; lists and watches are anybody's.
    """
    found: Counter[str] = Counter()
    for one in lab.kube.requests()[since:]:
        what = one["objectRef"]
        ended = one["verb"] == "watch" and one["stage"] == "ResponseComplete"
        if one["user"].get("username") == AGENT and what.get("name") in (name, "", None) and not ended:
            resource = "/".join(filter(None, (what["resource"], what.get("subresource"))))
            found[f"{one['verb']} {resource}"] += 1
    return found


def kill_server(lab: Lab) -> None:
    """kill -9; returns when the server's last thread is gone, and its port with it."""
    process = lab.kube.process
    assert process
    process.signal(signal.SIGKILL)

    def free() -> bool:
        with netns.call_inside(lab.kube.ns, socket.socket) as probe:
            return probe.connect_ex((str(ETCD_IP), PORT)) != 0

    eventually(lambda: not process.alive and free(), "the server is gone")


def has_route(node: Node, subnet: str) -> bool:
    return bool(node.run(["ip", "route", "show", subnet]).stdout)


def says(node: Node, *texts: str, since: int = 0) -> None:
    """Wait until the node's daemon has logged one line with all `texts`, after `since` characters."""
    eventually(
        lambda: any(all(text in line for text in texts) for line in node.daemon_log()[since:].splitlines()),
        lambda: f"{node.name} says {texts}; it said:\n{node.daemon_log()[since:]}",
        within=20,
    )


def lines(node: Node, text: str, since: int = 0) -> int:
    """How many lines of the daemon's log have `text` in them."""
    return sum(text in line for line in node.daemon_log()[since:].splitlines())
