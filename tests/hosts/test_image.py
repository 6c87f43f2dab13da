"""The image, made without a registry, run by Docker Engine beside a node of the lab."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from flannel_ebpf.lab import Lab, LabSpec
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from tests.hosts.conftest import NEEDED, SYSTEM
from tests.hosts.machine import TOP, Machine, debian
from tests.polls import eventually

RIGHTS = "--network host --cap-add NET_ADMIN --cap-add NET_RAW --cap-add SYS_ADMIN"
PLACES = "-v /sys/fs/bpf:/sys/fs/bpf -v /run/flannel:/run/flannel -v /run/flannel-ebpf:/run/flannel-ebpf"


@pytest.fixture
def host(lab: Lab) -> Iterator[Machine]:
    subprocess.run(["make", "--no-print-directory", "-C", TOP, "image"], check=True)
    root = debian("docker-12", "bookworm", *SYSTEM, *NEEDED, "docker.io", "busybox-static", "iperf3")
    with Machine("hosts-n1", root, lab.node("n1").ns) as machine:
        machine.sh("systemctl stop docker docker.socket; mount -t tmpfs tmpfs /var/lib/docker")
        machine.sh("mount -t tmpfs tmpfs /var/lib/containerd; systemctl start docker")
        with (TOP / "dist/flannel-ebpf-image.tar").open("rb") as image:
            subprocess.run(machine.command("docker", "load"), stdin=image, check=True)
        yield machine


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name="image", nodes=2, start_daemons=False, pods_per_node=0)) as made:
        yield made


def test_runs_by_bpf_and_survives_a_restart_of_its_container(host: Machine, lab: Lab) -> None:
    lab.node("n2").start_daemon()
    host.sh("mkdir -p /run/flannel /run/flannel-ebpf")
    flags = f"-etcd-endpoints={ETCD_ENDPOINT} -iface=eth0"
    host.sh(f"docker run -d --name fe {RIGHTS} {PLACES} flannel-ebpf:0.1.0 {flags}")

    def by_bpf() -> bool:
        return "BPF by tcx" in host.sh("docker exec fe flannel-ebpf status || true")

    eventually(by_bpf, lambda: host.sh("docker logs fe 2>&1 | tail"), 30)
    assert "FLANNEL_SUBNET=" in host.sh("cat /run/flannel/subnet.env")
    eventually(
        lambda: "ok" in host.sh("docker exec fe flannel-ebpf probe || true"),
        lambda: host.sh("docker exec fe flannel-ebpf probe || true"),
        30,
    )
    hooks = lab.node("n1").hooks()
    host.sh("docker restart fe")
    eventually(by_bpf, lambda: host.sh("docker logs fe 2>&1 | tail"), 30)
    assert {hook.device for hook in lab.node("n1").hooks()} == {hook.device for hook in hooks}
    assert (
        host.sh("docker run --rm --entrypoint /opt/bin/install-conf flannel-ebpf:0.1.0 /etc/hosts /tmp/x")
        == ""
    )
