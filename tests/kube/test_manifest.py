"""The manifests: taken by a real API server, and their containers run as a runtime runs them."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.kube_server import RULES
from tests.kube.container import TOP, Container, write_config
from tests.netns.kube.cluster import notes
from tests.netns.labs import MakeLab
from tests.netns.life import Delivery, stream
from tests.netns.traffic import ping
from tests.polls import eventually

log = logging.getLogger("figures")
FOLDER = TOP / "deploy/kubernetes"
COLLECTIONS = {
    "Namespace": "/api/v1/namespaces",
    "ServiceAccount": "/api/v1/namespaces/kube-flannel/serviceaccounts",
    "ConfigMap": "/api/v1/namespaces/kube-flannel/configmaps",
    "ClusterRole": "/apis/rbac.authorization.k8s.io/v1/clusterroles",
    "ClusterRoleBinding": "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
    "DaemonSet": "/apis/apps/v1/namespaces/kube-flannel/daemonsets",
}


def objects(name: str) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all((FOLDER / name).read_text()) if one]


def of_kind(kind: str, name: str = "kube-flannel-ebpf.yml") -> dict[str, Any]:
    (found,) = [one for one in objects(name) if one["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def lab(make_kube_lab: MakeLab) -> Lab:
    return make_kube_lab(nodes=2, start_daemons=False, pods_per_node=1, network="10.244.0.0/16")


@pytest.mark.parametrize("name", ["kube-flannel-ebpf.yml", "uninstall.yml"])
def test_a_real_server_takes_it(lab: Lab, name: str) -> None:
    """kubectl apply --dry-run=server: unknown fields and values are errors, and there is no warning."""
    lab.kube.apply(of_kind("Namespace"), COLLECTIONS["Namespace"])
    for one in objects(name):
        if one["kind"] != "Namespace":
            one["metadata"]["name"] += "-tried"  # the lab has a ClusterRole of its own
            path = COLLECTIONS[one["kind"]]
            made = lab.kube.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", one)
            assert made["metadata"]["name"] == one["metadata"]["name"]


def test_the_rights_are_flannels_and_the_labs() -> None:
    assert of_kind("ClusterRole")["rules"] == RULES


def test_the_config_can_be_used() -> None:
    data = of_kind("ConfigMap")["data"]
    assert str(parse_network_config(data["net-conf.json"], "manifest").network) == "10.244.0.0/16"
    assert [one["type"] for one in json.loads(data["cni-conf.json"])["plugins"]] == ["flannel", "portmap"]


class Agent:
    """The DaemonSet's pod on one node."""

    def __init__(self, lab: Lab, node: Node, template: dict[str, Any]) -> None:
        write_config(node, of_kind("ConfigMap"))
        self.node = node
        self.inits = [Container(lab, node, template, one) for one in template["initContainers"]]
        self.main = Container(lab, node, template, template["containers"][0])
        if not node.subnet_file.is_symlink():
            node.subnet_file.symlink_to(node.folder / "host/run/flannel/subnet.env")

    def start(self) -> None:
        for one in self.inits:
            if one.spec["name"] != "install-cni-plugin":  # flannel's image
                one.run()
        self.main.start()

    @property
    def ready(self) -> bool:
        """What the kubelet asks."""
        probe = self.main.spec["readinessProbe"]["httpGet"]
        (port,) = [one["containerPort"] for one in self.main.spec["ports"] if one["name"] == probe["port"]]
        url = f"http://{self.node.ip}:{port}{probe['path']}"
        return self.node.run(["curl", "--silent", "--fail", url], check=False).returncode == 0


@pytest.fixture
def agents(lab: Lab) -> Iterator[list[Agent]]:
    template = of_kind("DaemonSet")["spec"]["template"]["spec"]
    made = [Agent(lab, node, template) for node in lab.nodes]
    for one in made:
        one.start()
    try:
        for one in made:
            eventually(lambda one=one: one.ready, one.main.said, 30)  # type: ignore[misc]  # bound now
        if not lab.pods:
            lab.add_pods()
        yield made
    finally:
        for one in made:
            one.main.stop()


def test_the_daemonset_carries_packets_by_bpf(lab: Lab, agents: list[Agent]) -> None:
    one, two = lab.pods
    eventually(lambda: ping(one, two.ip, 5) == 5, "pods talk")
    eventually(lambda: attached(lab.node("n1")) >= {"eth0", one.veth, "flannel.1"}, agents[0].main.said)
    installed = (lab.node("n1").folder / "host/etc/cni/net.d/10-flannel.conflist").read_text()
    assert installed == of_kind("ConfigMap")["data"]["cni-conf.json"]
    said = agents[0].main.said()
    assert "Traceback" not in said
    assert not [line for line in said.splitlines() if line.startswith(("E", "F"))], said


def attached(node: Node) -> set[str]:
    return {hook.device for hook in node.hooks()}


def programs(node: Node) -> set[int]:
    return {hook.prog_id for hook in node.hooks()}


def test_a_rolling_update_loses_no_packet(lab: Lab, agents: list[Agent]) -> None:
    """Each pod is ended and made anew, as after `kubectl set image`."""
    one, two = lab.pods
    eventually(lambda: ping(one, two.ip, 5) == 5, "pods talk")
    results: list[Delivery] = []
    before = [programs(node) for node in lab.nodes]
    with stream(one, two, 7001) as there, stream(two, one, 7002) as back:
        results += [there, back]
        for agent in agents:
            agent.main.stop()
            agent.start()
            eventually(lambda agent=agent: agent.ready, agent.main.said, 30)  # type: ignore[misc]  # bound now
    sent, lost = sum(it.sent for it in results), sum(it.lost for it in results)
    log.info(
        "rolling update: %d sent, %d lost, longest gap %.0f ms",
        sent,
        lost,
        1000 * max(it.gap for it in results),
    )
    assert lost == 0
    assert [programs(node) for node in lab.nodes] == before, "the new pod knows the programs of the old one"


def test_flannels_own_manifest_with_our_image(lab: Lab) -> None:
    """Its DaemonSet has no right to load programs: the kernel carries packets, and the log says why."""
    template = of_kind("DaemonSet", str(Path(__file__).with_name("flannels_daemonset.yml")))["spec"][
        "template"
    ]["spec"]
    lab.kube.apply(of_kind("Namespace"), COLLECTIONS["Namespace"])
    for node in lab.nodes:
        containers = [{"name": "kube-flannel", "image": "flannel-ebpf"}]
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"kube-flannel-{node.name}"},
            "spec": {"nodeName": node.name, "containers": containers},
        }
        lab.kube.apply(pod, "/api/v1/namespaces/kube-flannel/pods")
    made = [Agent(lab, node, template) for node in lab.nodes]
    try:
        for one in made:
            one.start()
            eventually(lambda one=one: one.ready, one.main.said, 30)  # type: ignore[misc]  # bound now
        if not lab.pods:
            lab.add_pods()
        one, two = lab.pods
        eventually(lambda: ping(one, two.ip, 5) == 5, "pods talk")
        assert "no BPF on this host, packets take the kernel path" in made[0].main.said()
        assert "Traceback" not in made[0].main.said()
    finally:
        for agent in made:
            agent.main.stop()


def test_removal_leaves_nothing(lab: Lab) -> None:
    """The DaemonSet is deleted, and uninstall.yml's runs on every node."""
    template = of_kind("DaemonSet")["spec"]["template"]["spec"]
    agents = [Agent(lab, node, template) for node in lab.nodes]
    for one in agents:
        one.start()
    for one in agents:
        eventually(lambda one=one: one.ready, one.main.said, 30)  # type: ignore[misc]  # bound now
    for one in agents:
        one.main.stop()
    removal = of_kind("DaemonSet", "uninstall.yml")["spec"]["template"]["spec"]
    for node in lab.nodes:
        for container in removal["initContainers"]:
            Container(lab, node, removal, container).run()
        said = node.run(["sh", "-c", "ip link; ip route; iptables-save; nft list ruleset"]).stdout
        assert "flannel" not in said.lower(), said
        assert "10.244." not in node.run(["ip", "route", "show", "proto", "251"]).stdout
        assert not node.hooks()
        assert not list(node.pin_root.iterdir())
        assert not (node.folder / "host/etc/cni/net.d/10-flannel.conflist").exists()
        assert not (node.folder / "host/run/flannel/subnet.env").exists()
        assert notes(lab, node.name) == {}
