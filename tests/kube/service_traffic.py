"""Services and clients for them: every answer says which pod gave it, and whom it took for the client."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address, ip_network
from typing import Any, BinaryIO

from flannel_ebpf.base.family import Address, Family
from flannel_ebpf.lab import Host, Lab, Node, Pod
from flannel_ebpf.lab.kube_proxy import KubeProxy
from flannel_ebpf.lab.kube_server import SERVICES
from flannel_ebpf.lab.processes import tail
from tests.polls import eventually

PORT = 8080
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"

_SERVER = """
import json, socket, sys, threading
name, port = sys.argv[1], int(sys.argv[2])
def hello(peer):
    return json.dumps([name, peer[0].removeprefix("::ffff:")]).encode() + b"\\n"
def echo(sock, peer):
    with sock:
        sock.sendall(hello(peer))
        while data := sock.recv(65536):
            sock.sendall(data)
def tcp():
    server = socket.create_server(("::", port), family=socket.AF_INET6, backlog=256, dualstack_ipv6=True)
    print("ready", flush=True)
    while True:
        threading.Thread(target=lambda it: echo(*it), args=(server.accept(),), daemon=True).start()
def udp():
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind(("::", port))
    while True:
        _, peer = sock.recvfrom(65536)
        sock.sendto(hello(peer), peer)
threading.Thread(target=udp, daemon=True).start()
tcp()
"""

_CLIENT = """
import json, socket, sys
kind, ip, port, count, source = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
family = socket.AF_INET6 if ":" in ip else socket.AF_INET
found = []
for number in range(count):
    sock = socket.socket(family, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    sock.settimeout(3)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        if source:
            sock.bind(("", source))
        sock.connect((ip, port))
        if kind == "udp":
            sock.send(b"?")
            found.append(json.loads(sock.recv(4096)))
        else:
            said = sock.makefile("rb").readline()
            found.append(json.loads(said))
            body = bytes([number % 256]) * 3000
            sock.sendall(body)
            back = b""
            while len(back) < len(body):
                back += sock.recv(65536) or sys.exit("closed")
            if back != body:
                found[-1] = ["foreign bytes", ""]
    except OSError as error:
        found.append([f"failed: {type(error).__name__}", ""])
    finally:
        sock.close()
print(json.dumps(found))
"""

Answer = tuple[str, str]
"""Pod that answered, and the address that it saw."""


@contextmanager
def serving(pods: Iterable[Pod]) -> Iterator[None]:
    """Serve TCP and UDP on PORT of each pod during the block."""
    running = [(pod, pod.popen([sys.executable, "-c", _SERVER, pod.name, str(PORT)])) for pod in pods]
    try:
        for _, process in running:
            assert process.stdout
            assert process.stdout.readline() == "ready\n", process.stdout.read()
        yield
    finally:
        for _, process in running:
            process.kill()
            process.communicate()


def ask(client: Host, ip: object, port: int, count: int, kind: str = "tcp", source: int = 0) -> list[Answer]:
    """Connect `count` times one after the other and send bytes to and fro; from port `source` if not 0."""
    line = [sys.executable, "-c", _CLIENT, kind, str(ip), str(port), str(count), str(source)]
    return [(pod, peer) for pod, peer in json.loads(client.run(line, timeout=120).stdout)]


@contextmanager
def asking(client: Host, service: Address, failed: Counter[str]) -> Iterator[None]:
    """Connect to the service again and again during the block; count what failed."""
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            for kind in ("tcp", "udp"):
                failed.update(pod for pod, _ in ask(client, service, 80, 20, kind) if not pod.startswith("n"))

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def echoed(sock: socket.socket, reader: BinaryIO, size: int) -> bool:
    """Send random bytes, and say whether the same come back."""
    body = os.urandom(size)
    sender = threading.Thread(target=sock.sendall, args=(body,))
    sender.start()
    back = reader.read(size)
    sender.join()
    return back == body


class Service:
    """A Service of both families without selector, and its EndpointSlices, which a controller would write."""

    def __init__(self, lab: Lab, name: str, number: int, **spec: Any) -> None:
        self.lab, self.name = lab, name
        self.ips = {family: ip_network(pool)[number] for family, pool in SERVICES.items()}
        self.node_port = 30000 + number
        self._pods: list[Pod] = []
        ports = [
            {"name": kind, "protocol": kind.upper(), "port": 80, "targetPort": PORT}
            | ({"nodePort": self.node_port} if spec.get("type") == "NodePort" else {})
            for kind in ("tcp", "udp")
        ]
        ips = [str(ip) for ip in self.ips.values()]
        both = {"ipFamilyPolicy": "RequireDualStack", "clusterIP": ips[0], "clusterIPs": ips}
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {**both, "ports": ports, **spec},
        }
        lab.kube.request("POST", "/api/v1/namespaces/default/services", service)
        for family in self.ips:
            lab.kube.request("POST", SLICES, self._slice(family, []))

    def point_to(self, pods: Sequence[Pod]) -> None:
        """Make these pods the endpoints, and wait until every kube-proxy has heard of it."""
        chosen = {pod.name for pod in pods}
        gone = [pod for pod in self._pods if pod.name not in chosen]
        self._pods = list(pods)
        for family in self.ips:
            wanted = self._slice(family, pods)
            body = {"endpoints": wanted["endpoints"]}
            self.lab.kube.request("PATCH", f"{SLICES}/{wanted['metadata']['name']}", body)
        for node in self.lab.nodes:
            for family in self.ips:
                self._await(node, family, pods, gone)

    def _await(self, node: Node, family: Family, pods: Sequence[Pod], gone: Sequence[Pod]) -> None:
        def is_known() -> bool:
            known = targets(node, self.name, family)
            there, away = ({pod.at(family) for pod in some} for some in (pods, gone))
            return known >= there and known.isdisjoint(away)

        eventually(
            is_known,
            lambda: (
                f"{node.name} knows {self.name}: {pods}\n{proxy_rules(node, family)}\n"
                f"{tail(KubeProxy(node).log)}"
            ),
            30,
        )

    def _slice(self, family: Family, pods: Sequence[Pod]) -> dict[str, Any]:
        endpoints = [
            {
                "addresses": [str(pod.at(family))],
                "conditions": {"ready": True},
                "nodeName": pod.name.partition("p")[0],
            }
            for pod in pods
        ]
        ports = [{"name": kind, "protocol": kind.upper(), "port": PORT} for kind in ("tcp", "udp")]
        labels = {"kubernetes.io/service-name": self.name}
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {"name": f"{self.name}-{family.value}", "labels": labels},
            "addressType": str(family),
            "endpoints": endpoints,
            "ports": ports,
        }


def proxy_rules(node: Node, family: Family) -> str:
    """What kube-proxy has written on a node, in whichever mode."""
    four = family is Family.V4
    if node.spec.kube_proxy_mode == "iptables":
        return node.run(["iptables-save" if four else "ip6tables-save", "-t", "nat"]).stdout
    line = ["nft", "list", "table", "ip" if four else "ip6", "kube-proxy"]
    return node.run(line, check=False).stdout


def targets(node: Node, service: str, family: Family) -> set[Address]:
    """Addresses to which a node's kube-proxy translates a service's."""
    found, chain = set[Address](), ""
    for line in proxy_rules(node, family).splitlines():
        chain = line if line.startswith("\tchain ") else chain
        place = chain if chain else line  # nft names the service in the chain, iptables in the rule's comment
        word = "dnat to " if chain else "--to-destination "
        if f"default/{service}" in place and word in line:
            target = line.partition(word)[2].split()[0].rpartition(":")[0]
            found.add(ip_address(target.strip("[]")))
    return found
