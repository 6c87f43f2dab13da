"""The reference CNI plugins on two nodes, configured as flannel's own plugin does it from subnet.env."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, LabSpec, Node, netns
from tests.hosts.machine import TOP
from tests.netns.diagnose.commands import asked
from tests.polls import eventually

PLUGINS = "/usr/lib/cni"
PODS = 50
LIMIT = 20_000_000
BURST = 2_000_000


@dataclass
class CniPod:
    """A pod that plugins made: its namespace, address and what it was added with."""

    node: Node
    name: str
    plugins: list[dict[str, Any]]
    capabilities: dict[str, Any]
    ip: str = ""

    @property
    def ns(self) -> str:
        return f"{self.node.spec.name}-{self.name}"

    def add(self) -> None:
        netns.create([self.ns])
        result: Any = None
        for plugin in self.plugins:
            result = self._call("ADD", plugin, result)
        self.ip = result["ips"][0]["address"].partition("/")[0]

    def delete(self) -> None:
        for plugin in reversed(self.plugins):
            self._call("DEL", plugin, None)
        netns.delete([self.ns])

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(netns.inside(self.ns, command), capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def _call(self, verb: str, plugin: dict[str, Any], before: Any) -> Any:
        config = {"name": "cbr0", "cniVersion": "0.4.0", **plugin}
        wanted = plugin.get("capabilities", {})
        config["runtimeConfig"] = {
            name: self.capabilities[name] for name in wanted if name in self.capabilities
        }
        if before:
            config["prevResult"] = before
        environ = {
            **os.environ,
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": self.ns,
            "CNI_NETNS": f"/run/netns/{self.ns}",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": PLUGINS,
        }
        line = netns.inside(self.node.ns, [f"{PLUGINS}/{plugin['type']}"])
        done = subprocess.run(
            line, input=json.dumps(config), env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{plugin['type']} {verb}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout) if done.stdout.strip() else before


def plugins(node: Node, first: str) -> list[dict[str, Any]]:
    """Return what flannel's plugin hands to `bridge` or `ptp`, and what its conflist chains after that."""
    told = node.environment()
    ipam = {
        "type": "host-local",
        "dataDir": str(node.folder / "cni"),
        "ranges": [[{"subnet": str(node.subnet)}]],
        "routes": [{"dst": told["FLANNEL_NETWORK"]}] + ([{"dst": "0.0.0.0/0"}] if first == "ptp" else []),
    }
    main: dict[str, Any] = {"type": first, "mtu": int(told["FLANNEL_MTU"]), "ipMasq": False, "ipam": ipam}
    if first == "bridge":
        main |= {"bridge": "cni0", "isGateway": True, "isDefaultGateway": True, "hairpinMode": True}
    return [
        main,
        {"type": "portmap", "capabilities": {"portMappings": True}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        {"type": "firewall", "backend": "iptables"},
    ]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    subprocess.run([TOP / "tools/setup_packages.sh", "containernetworking-plugins"], check=True)
    with Lab.up(LabSpec(name="cni", nodes=2, pods_per_node=0, datapath="ebpf")) as made:
        for node in made.nodes:
            node.run(["sysctl", "-qw", "net.bridge.bridge-nf-call-iptables=1"], check=False)
        yield made


@pytest.fixture(autouse=True)
def no_pods_left(lab: Lab) -> Iterator[None]:
    """Remove the namespaces of pods that a failed test has left."""
    yield
    netns.delete(
        [name for name in netns.names() if name.startswith(f"{lab.spec.name}-n") and "p" in name[5:]]
    )


def made(lab: Lab, first: str, numbers: range, **capabilities: Any) -> list[tuple[CniPod, CniPod]]:
    """Add as many pods on both nodes; a pod's partner is the other node's of the same number."""
    pairs = []
    for number in numbers:
        pair = tuple(
            CniPod(node, f"{node.name}p{number}", plugins(node, first), capabilities) for node in lab.nodes
        )
        for pod in pair:
            pod.add()
        pairs.append((pair[0], pair[1]))
    return pairs


def delete(pairs: list[tuple[CniPod, CniPod]]) -> None:
    for pair in pairs:
        for pod in pair:
            pod.delete()


def devices(node: Node) -> set[str]:
    return {pod["device"] for pod in asked(node, "pods")}


@pytest.mark.parametrize(("first", "number"), [("bridge", PODS), ("ptp", 5)])
def test_pods_reach_their_partners_by_bpf(lab: Lab, first: str, number: int) -> None:
    node = lab.node("n1")
    empty = devices(node)
    pairs = made(lab, first, range(100, 100 + number))
    eventually(lambda: len(devices(node) - empty) == number, "every pod's device is known", 60)
    for one, other in pairs:
        assert ", 0% packet loss" in one.run("ping", "-q", "-i", "0.02", "-c", "20", other.ip)
    (peer,) = asked(node, "peers")
    assert peer["tx_packets"] > 4 * number  # the first ones of each flow teach
    assert {pod["path"] for pod in asked(node, "pods")} == {"bpf"}
    delete(pairs)
    eventually(lambda: devices(node) == empty, "none of them is left in the maps", 30)


@pytest.mark.parametrize("first", ["bridge", "ptp"])
@pytest.mark.parametrize("direction", ["from the pod", "to the pod"])
def test_bandwidth_limits_hold(lab: Lab, first: str, direction: str, record_property: Any) -> None:
    limits = {"ingressRate": LIMIT, "ingressBurst": BURST, "egressRate": LIMIT, "egressBurst": BURST}
    pairs = made(lab, first, range(200, 201), bandwidth=limits)
    ((one, other),) = pairs
    node = lab.node("n1")
    eventually(
        lambda: {pod["path"] for pod in asked(node, "pods")} == {"kernel"}, "the daemon sees the shaper", 30
    )
    server = subprocess.Popen(netns.inside(other.ns, ["iperf3", "-s", "-1"]), stdout=subprocess.DEVNULL)
    eventually(lambda: ":5201" in other.run("ss", "-ltn"), "iperf3 listens")
    flags = ["-R"] if direction == "to the pod" else []
    result = json.loads(one.run("iperf3", "-c", other.ip, "-t", "6", "-O", "2", "--json", *flags))["end"]
    server.wait(60)
    rate = result["sum_received"]["bits_per_second"]
    record_property("mbit_per_s", round(rate / 1e6, 1))
    delete(pairs)
    assert 0.7 * LIMIT < rate < 1.15 * LIMIT


def test_a_host_port_is_reached_from_the_other_node(lab: Lab) -> None:
    mapping = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    pairs = made(lab, "bridge", range(300, 301), portMappings=mapping)
    ((one, other),) = pairs
    serve = "import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=80, bind='0.0.0.0')"
    server = subprocess.Popen(
        netns.inside(other.ns, ["python3", "-c", serve]),
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    eventually(lambda: ":80" in other.run("ss", "-ltn"), "it listens")
    fetch = "import urllib.request as u; print(u.urlopen('http://{}', timeout=5).status)"
    try:
        for place in (f"{other.node.ip}:8080", f"{other.ip}:80"):
            assert one.run("python3", "-c", fetch.format(place)).strip() == "200"
            assert one.node.run(["python3", "-c", fetch.format(place)]).stdout.strip() == "200"
    finally:
        server.kill()
        server.wait()
        delete(pairs)
