"""Docker Engine on two hosts that run the package: what users of flannel with Docker rely on."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, LabSpec, Node
from flannel_ebpf.lab.spec import ETCD_ENDPOINT, ETCD_IP
from tests.hosts.conftest import NEEDED, SYSTEM
from tests.hosts.machine import Machine, debian
from tests.polls import eventually

DROP_IN = "/etc/systemd/system/docker.service.d"
EXAMPLE = "/usr/share/doc/flannel-ebpf/examples/docker-flannel.conf"
APPLETS = ("sh", "sleep", "httpd", "wget", "ping", "true")
MANY = 50


@dataclass
class Host:
    """A booted host with Docker, and the lab's node whose network it has."""

    machine: Machine
    node: Node

    def sh(self, script: str) -> str:
        return self.machine.sh(script)

    def run(self, name: str, *flags: str, command: str = "sleep 100000") -> str:
        """Start a container and return its address."""
        self.sh(f"docker run -d --name {name} {' '.join(flags)} busybox {command}")
        return self.sh(f"docker inspect -f '{{{{.NetworkSettings.IPAddress}}}}' {name}")

    def inside(self, name: str, script: str, *, check: bool = True) -> str:
        return self.machine.sh(f"docker exec {name} sh -c '{script}'", check=check)

    def by_bpf(self) -> int:
        """Return the packets that BPF has sent to peers."""
        return sum(peer["tx_packets"] for peer in json.loads(self.sh("flannel-ebpf peers --json"))["peers"])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with nothing but busybox, to be imported."""
    root = debian("docker-12", "bookworm", *SYSTEM, *NEEDED, "docker.io", "busybox-static", "iperf3")
    path = tmp_path_factory.mktemp("image") / "busybox.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root / "bin/busybox", "bin/busybox")
        for applet in APPLETS:
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
    return path


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name="docker", nodes=2, start_daemons=False, pods_per_node=0)) as made:
        yield made


@pytest.fixture(scope="module")
def hosts(lab: Lab, deb: Path, image: Path) -> Iterator[list[Host]]:
    root = debian("docker-12", "bookworm", *SYSTEM, *NEEDED, "docker.io", "busybox-static", "iperf3")
    with ExitStack() as stack:
        made = []
        for node in lab.nodes:
            machine = stack.enter_context(Machine(f"docker-{node.name}", root, node.ns))
            # Docker's layers are overlays, which cannot lie on the overlay that is the machine's root.
            machine.sh("systemctl stop docker docker.socket; mount -t tmpfs tmpfs /var/lib/docker")
            machine.sh("mount -t tmpfs tmpfs /var/lib/containerd")
            machine.copy(deb, "/root/new.deb")
            machine.sh("apt-get -qq -y -o Dpkg::Use-Pty=0 install /root/new.deb")
            text = f"FLANNELD_ETCD_ENDPOINTS={ETCD_ENDPOINT}\nFLANNELD_IFACE=eth0\n"
            machine.sh(f"printf '{text}' >> /etc/default/flannel-ebpf")
            machine.sh(f"mkdir -p {DROP_IN}; cp {EXAMPLE} {DROP_IN}/flannel.conf; systemctl daemon-reload")
            # Docker sets FORWARD to DROP where it finds forwarding off, as it does on most hosts.
            machine.sh("sysctl -qw net.ipv4.ip_forward=0")
            machine.sh("systemctl enable --now --quiet flannel-ebpf; systemctl start docker")
            machine.copy(image, "/root/busybox.tar")
            machine.sh("docker import /root/busybox.tar busybox")
            made.append(Host(machine, node))
        yield made


@pytest.fixture(scope="module")
def pair(hosts: list[Host]) -> tuple[str, str]:
    """A container on each host, c1 and c2: their addresses."""
    return hosts[0].run("c1"), hosts[1].run("c2", "-p 8080:80", command="httpd -f -p 80 -h /bin")


def test_docker_is_on_the_nodes_subnet(hosts: list[Host]) -> None:
    for host in hosts:
        told = dict(line.split("=", 1) for line in host.sh("cat /run/flannel/subnet.env").splitlines())
        address = json.loads(host.sh("ip -j -4 address show docker0"))[0]["addr_info"][0]
        assert f"{address['local']}/{address['prefixlen']}" == told["FLANNEL_SUBNET"]
        assert "--ip-masq=false" in host.sh("cat /run/flannel/docker")
        assert "-P FORWARD DROP" in host.sh("iptables -S FORWARD")


def test_containers_talk_across_hosts_by_bpf(hosts: list[Host], pair: tuple[str, str]) -> None:
    before = hosts[0].by_bpf()
    said = hosts[0].inside("c1", f"ping -q -c 60 -i 0.1 {pair[1]}")
    assert "60 packets transmitted, 60 packets received" in said
    assert hosts[0].by_bpf() > before + 20  # the first ones teach
    mtu = hosts[0].inside("c1", "ping -q -c 2 -s 1422 " + pair[1])
    assert " 0% packet loss" in mtu


def test_a_stream_goes_by_bpf(hosts: list[Host], pair: tuple[str, str], record_property: Any) -> None:
    enter = "nsenter -t $(docker inspect -f '{{.State.Pid}}' %s) -n iperf3"
    hosts[1].sh(f"{enter % 'c2'} -s -D")
    before = hosts[0].by_bpf()
    result = json.loads(hosts[0].sh(f"{enter % 'c1'} -c {pair[1]} -t 5 --json"))["end"]
    segments = result["sum_sent"]["bytes"] / 1398
    carried = hosts[0].by_bpf() - before
    record_property("gbit_per_s", round(result["sum_received"]["bits_per_second"] / 1e9, 2))
    assert carried > 0.95 * segments


@pytest.mark.parametrize("way", ["host to container", "container to port", "host to port", "outside to port"])
def test_ports_and_addresses_are_reached(
    way: str, hosts: list[Host], pair: tuple[str, str], lab: Lab
) -> None:
    port = f"http://{hosts[1].node.ip}:8080/busybox"
    direct = f"http://{pair[1]}/busybox"
    if way == "container to port":
        got = hosts[0].machine.sh(f"docker exec c1 wget -q -O - {port} | wc -c")
    elif way == "host to container":
        got = hosts[0].sh(f"busybox wget -q -O - {direct} | wc -c")
    elif way == "host to port":
        got = hosts[0].sh(f"busybox wget -q -O - {port} | wc -c")
    else:
        fetch = ["sh", "-c", f"wget -qO - {port} | wc -c"]
        got = lab.node("n1").run(["nsenter", f"--net=/run/netns/{lab.spec.switch_ns}", *fetch]).stdout
    assert int(got) > 100_000


def test_the_world_outside_is_reached_by_masquerade(hosts: list[Host], pair: tuple[str, str]) -> None:
    assert "etcdserver" in hosts[0].inside("c1", f"wget -q -O - http://{ETCD_IP}:2379/version")


@pytest.mark.parametrize("restarted", ["flannel-ebpf", "docker"])
def test_a_restart_is_survived(restarted: str, hosts: list[Host], pair: tuple[str, str]) -> None:
    if restarted == "docker":
        hosts[1].sh("systemctl restart docker; docker start c2")
        address = hosts[1].sh("docker inspect -f '{{.NetworkSettings.IPAddress}}' c2")
        assert "3 packets received" in hosts[0].inside("c1", f"ping -q -c 3 {address}")
        return
    hosts[0].sh(f"docker exec c1 ping -q -c 100 -i 0.1 {pair[1]} > /run/ping &")
    hosts[0].sh("systemctl restart flannel-ebpf")
    eventually(lambda: "packets received" in hosts[0].sh("cat /run/ping"), "the ping is at its end", 40)
    assert "100 packets transmitted, 100 packets received" in hosts[0].sh("cat /run/ping")


def test_fifty_containers_come_and_go(hosts: list[Host], pair: tuple[str, str]) -> None:
    host = hosts[0]
    before = {pod["device"] for pod in json.loads(host.sh("flannel-ebpf pods --json"))["pods"]}
    start = f"for n in $(seq {MANY}); do docker run -d --rm --name m$n busybox sleep 100000 > /dev/null; done"
    host.machine.run("sh", "-ec", start, timeout=900)
    reach = "for n in $(seq %d); do docker exec m$n ping -q -c 1 -w 5 %s > /dev/null || echo m$n; done"
    assert host.machine.run("sh", "-ec", reach % (MANY, pair[1]), timeout=900).stdout == ""
    host.machine.run("sh", "-ec", f"docker rm -f $(seq -f m%g {MANY}) > /dev/null", timeout=900)

    def gone() -> bool:
        return {pod["device"] for pod in json.loads(host.sh("flannel-ebpf pods --json"))["pods"]} <= before

    eventually(gone, "the pods' map has none of them left", 30)


def test_doctor_is_content_and_names_what_docker_does_by_itself(hosts: list[Host]) -> None:
    host = hosts[0]
    problems = re.findall(r"^problem .*", host.machine.sh("flannel-ebpf doctor", check=False), re.MULTILINE)
    assert problems == []
    subnet = host.sh(". /run/flannel/subnet.env; echo $FLANNEL_SUBNET")
    host.sh(f"iptables -t nat -I POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE")
    told = host.machine.sh("flannel-ebpf doctor", check=False)
    host.sh(f"iptables -t nat -D POSTROUTING -s {subnet} ! -o docker0 -j MASQUERADE")
    assert "Docker masquerades what pods send to other nodes" in " ".join(told.split())
