"""Services and clients for them: every answer says which pod gave it, and whom it took for the client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import Host, Lab, Node, Pod
from flannel_ebpf.lab.kube_proxy import KubeProxy
from flannel_ebpf.lab.kube_server import SERVICES
from flannel_ebpf.lab.processes import tail
from tests.polls import eventually

PORT = 8080
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"
CLUSTER_IPS = SERVICES[Family.V4].partition("/")[0].rsplit(".", 1)[0]

_SERVER = """
import json, socket, sys, threading
name, port = sys.argv[1], int(sys.argv[2])
def hello(peer):
    return json.dumps([name, peer[0]]).encode() + b"\\n"
def echo(sock, peer):
    with sock:
        sock.sendall(hello(peer))
        while data := sock.recv(65536):
            sock.sendall(data)
def tcp():
    server = socket.create_server(("0.0.0.0", port), backlog=256)
    print("ready", flush=True)
    while True:
        threading.Thread(target=lambda it: echo(*it), args=(server.accept(),), daemon=True).start()
def udp():
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("0.0.0.0", port))
    while True:
        _, peer = sock.recvfrom(65536)
        sock.sendto(hello(peer), peer)
threading.Thread(target=udp, daemon=True).start()
tcp()
"""

_CLIENT = """
import json, socket, sys
kind, ip, port, count, source = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5])
found = []
for number in range(count):
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
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


class Service:
    """A Service without selector, and its EndpointSlice, which the test writes as a controller would."""

    def __init__(self, lab: Lab, name: str, number: int, **spec: Any) -> None:
        self.lab, self.name, self.ip = lab, name, f"{CLUSTER_IPS}.{number}"
        self.node_port = 30000 + number
        self._pods: list[Pod] = []
        ports = [
            {"name": kind, "protocol": kind.upper(), "port": 80, "targetPort": PORT}
            | ({"nodePort": self.node_port} if spec.get("type") == "NodePort" else {})
            for kind in ("tcp", "udp")
        ]
        service = {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"clusterIP": self.ip, "ports": ports, **spec},
        }
        lab.kube.request("POST", "/api/v1/namespaces/default/services", service)
        lab.kube.request("POST", SLICES, self._slice([]))

    def point_to(self, pods: Sequence[Pod]) -> None:
        """Make these pods the endpoints, and wait until every kube-proxy has heard of it."""
        chosen = {pod.name for pod in pods}
        gone = [pod for pod in self._pods if pod.name not in chosen]
        self._pods = list(pods)
        body = {"endpoints": self._slice(pods)["endpoints"]}
        self.lab.kube.request("PATCH", f"{SLICES}/{self.name}", body)
        for node in self.lab.nodes:
            self._await(node, pods, gone)

    def _await(self, node: Node, pods: Sequence[Pod], gone: Sequence[Pod]) -> None:
        proxy = KubeProxy(node)
        eventually(
            lambda: self._is_known(node, pods, gone),
            lambda: f"{node.name} knows {self.name}: {pods}\n{proxy_rules(node)}\n{tail(proxy.log)}",
            30,
        )

    def _is_known(self, node: Node, pods: Sequence[Pod], gone: Sequence[Pod]) -> bool:
        known = targets(node, self.name)
        return known >= {str(pod.ip) for pod in pods} and known.isdisjoint(str(pod.ip) for pod in gone)

    def _slice(self, pods: Sequence[Pod]) -> dict[str, Any]:
        endpoints = [
            {
                "addresses": [str(pod.ip)],
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
            "metadata": {"name": self.name, "labels": labels},
            "addressType": "IPv4",
            "endpoints": endpoints,
            "ports": ports,
        }


def proxy_rules(node: Node) -> str:
    """What kube-proxy has written on a node, in whichever mode."""
    if node.spec.kube_proxy_mode == "iptables":
        return node.run(["iptables-save", "-t", "nat"]).stdout
    return node.run(["nft", "list", "table", "ip", "kube-proxy"], check=False).stdout


def targets(node: Node, service: str) -> set[str]:
    """Addresses to which a node's kube-proxy translates a service's."""
    found, chain = set[str](), ""
    for line in proxy_rules(node).splitlines():
        chain = line if line.startswith("\tchain ") else chain
        place = chain if chain else line  # nft names the service in the chain, iptables in the rule's comment
        word = "dnat to " if chain else "--to-destination "
        if f"default/{service}" in place and word in line:
            found.add(line.partition(word)[2].partition(":")[0])
    return found
