"""The .deb on fresh Debian 12 and 13 under systemd: install, run, crash, upgrade under traffic, purge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from tests.hosts.conftest import NEEDED, RELEASES
from tests.hosts.machine import PATH, TOP, Machine, debian
from tests.polls import eventually

UNIT = "flannel-ebpf.service"
PACKAGE = "/root/new.deb"


@pytest.fixture
def host(root: Path, lab: Lab) -> Iterator[Machine]:
    """Node n1 of the lab as a host with systemd; n2 runs the daemon of this tree."""
    with Machine("hosts-n1", root, lab.node("n1").ns) as machine:
        yield machine


def install(host: Machine, deb: Path) -> str:
    host.copy(deb, PACKAGE)
    return host.run("apt-get", "-qq", "-y", "-o", "Dpkg::Use-Pty=0", "install", PACKAGE).stdout


def start(host: Machine, node: Node) -> None:
    """Configure as an operator does, and start; then the lab's node knows its subnet and may have pods."""
    text = f"FLANNELD_ETCD_ENDPOINTS={ETCD_ENDPOINT}\nFLANNELD_IFACE=eth0\nFLANNELD_IP_MASQ=true\n"
    host.sh(f"cat >> /etc/default/flannel-ebpf <<'E'\n{text}E\nsystemctl enable --quiet --now {UNIT}")
    node.subnet_file.write_text(host.sh("cat /run/flannel/subnet.env"))


def shown(host: Machine, name: str) -> str:
    return host.sh(f"systemctl show --property={name} --value {UNIT}")


@pytest.mark.parametrize("release", RELEASES)
def test_brings_what_it_depends_on(release: str, deb: Path, tmp_path: Path) -> None:
    bare = debian(f"{release}-bare", RELEASES[release])
    root = tmp_path / "root"
    subprocess.run(["cp", "-a", bare, root], check=True)
    shutil.copy(deb, f"{root}{PACKAGE}")
    install = f"apt-get -qq -y install --no-install-recommends {PACKAGE}"
    steps = f"apt-get -qq update; {install}; flannel-ebpf version"
    inside = ["chroot", root, "env", "-i", PATH, "DEBIAN_FRONTEND=noninteractive", "sh", "-ec", steps]
    command = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", *inside]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "datapath.bpf.o" in said.stdout
    assert "needs root" not in said.stdout


def test_fresh_host_needs_one_command(host: Machine, deb: Path) -> None:
    install(host, deb)
    facts = json.loads(host.sh("flannel-ebpf version --json"))
    assert facts["commit"]
    assert set(facts["objects"]) == {path.name for path in (TOP / "flannel_ebpf/_programs").glob("*.o")}
    assert "redirect_neigh" in facts["kernel"]["features"]
    assert shown(host, "UnitFileState") == "disabled"  # nothing runs before it is told where etcd is
    assert shown(host, "ActiveState") == "inactive"
    host.sh(f"systemd-analyze --man=no verify {UNIT}")
    exposure = host.sh(f"systemd-analyze --no-pager security {UNIT}").splitlines()[-1]
    assert re.search(r": [0-5]\.\d OK", exposure), exposure
    assert "docker-opts" in host.sh(
        "_FLANNEL_EBPF_COMPLETE=bash_complete COMP_WORDS='flannel-ebpf dock' COMP_CWORD=1 flannel-ebpf"
    )


def test_runs_crashes_hangs_and_is_upgraded_under_traffic(
    host: Machine, deb: Path, newer_deb: Path, lab: Lab
) -> None:
    install(host, deb)
    host.sh(f"mkdir /etc/systemd/system/{UNIT}.d; cd /etc/systemd/system/{UNIT}.d;"
            "printf '[Service]\\nWatchdogSec=4\\n' > watchdog.conf; systemctl daemon-reload")  # fmt: skip
    node, other = lab.node("n1"), lab.node("n2")
    start(host, node)
    other.start_daemon()
    lab.wait_ready([other])
    pods = node.add_pod(), other.add_pod()
    eventually(lambda: pods[0].veth in {hook.device for hook in node.hooks()}, "programs on the pod", 30)
    assert shown(host, "ActiveState") == "active"
    assert host.sh("cat /run/flannel/docker") == (
        f'DOCKER_NETWORK_OPTIONS=" --bip={node.gateway} --ip-masq=false --mtu=1450"'
    )
    ping = pods[0].popen(["ping", "-i", "0.02", "-w", "600", str(pods[1].ip)])
    pods[1].popen(["iperf3", "-s"])
    eventually(lambda: ":5201" in pods[1].run(["ss", "-ltn"]).stdout, "iperf3 listens")
    stream = pods[0].popen(
        ["iperf3", "-c", str(pods[1].ip), "-t", "600", "-b", "200M", "--connect-timeout", "9000"]
    )

    assert re.search(r"1 peers, BPF by (tcx|clsact)", shown(host, "StatusText"))

    pid = shown(host, "MainPID")
    host.sh(f"kill -STOP {pid}")  # it hangs: the watchdog notices
    eventually(lambda: shown(host, "MainPID") not in ("0", pid), "started again by the watchdog", 60)
    eventually(lambda: shown(host, "ActiveState") == "active", "active again", 30)
    pid = shown(host, "MainPID")
    host.sh(f"kill -KILL {pid}")
    eventually(
        lambda: shown(host, "ActiveState") == "active" and shown(host, "MainPID") != pid, "restarted", 30
    )
    host.sh(f"systemctl restart {UNIT}")
    assert shown(host, "ActiveState") == "active"
    pid = shown(host, "MainPID")
    install(host, newer_deb)
    assert host.sh("dpkg-query -W -f '${Version}' flannel-ebpf") == "0.1.0+newer"
    assert shown(host, "ActiveState") == "active"
    assert shown(host, "MainPID") != pid

    assert stream.poll() is None, stream.stdout and stream.stdout.read()
    ping.send_signal(2)
    said, _ = ping.communicate()
    sent, received = map(int, re.search(r"(\d+) packets transmitted, (\d+) received", said).groups())  # type: ignore[union-attr]
    assert sent > 200
    assert received == sent


def test_purge_leaves_the_kernel_path_and_no_file(host: Machine, deb: Path, lab: Lab) -> None:
    before = set(host.sh("find / -xdev").splitlines())
    install(host, deb)
    node = lab.node("n1")
    start(host, node)
    assert node.hooks()
    host.run("apt-get", "-qq", "-y", "purge", "flannel-ebpf")
    assert node.hooks() == []
    assert "flannel.1" in node.run(["ip", "link"]).stdout
    left = set(host.sh("find / -xdev").splitlines()) - before
    assert [
        path for path in left if "flannel" in path and not path.startswith(("/var/log", "/var/lib/apt"))
    ] == []
    assert host.sh(f"systemctl is-enabled {UNIT}", check=False) in ("", "not-found")


def test_the_wheel_works_in_an_environment_elsewhere(tmp_path: Path) -> None:
    """A fresh Debian with an environment of its own, wheels brought along as to a host without a network."""
    subprocess.run(["make", "--no-print-directory", "-C", TOP, "wheel"], check=True)
    (wheel,) = (TOP / "dist").glob("*.whl")
    root = tmp_path / "root"
    subprocess.run(
        ["cp", "-a", debian("debian-12-venv", "bookworm", "python3-venv", *NEEDED), root], check=True
    )
    wheels = root / "root/wheels"
    pip = [TOP / ".venv/bin/pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "-c", TOP / "tools/pins.txt", "-w", wheels, wheel], check=True)
    steps = """
        python3 -m venv --system-site-packages /opt/fe
        /opt/fe/bin/pip install -q --no-index --find-links /root/wheels flannel-ebpf
        cd /; /opt/fe/bin/flannel-ebpf version
    """
    inside = ["chroot", root, "env", "-i", PATH, "sh", "-ec", steps]
    command = ["unshare", "--mount", "--pid", "--fork", f"--mount-proc={root}/proc", *inside]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stdout + said.stderr
    assert "datapath.bpf.o  sha256:" in said.stdout
    assert "redirect_neigh" in said.stdout or "not in a bpffs" in said.stdout


def test_make_install_is_a_whole_tree(tmp_path: Path) -> None:
    subprocess.run(
        ["make", "--no-print-directory", "-C", TOP, "install", f"DESTDIR={tmp_path}", "PREFIX=/opt/fe"],
        check=True,
    )
    for path in (
        "opt/fe/bin/flannel-ebpf",
        "opt/fe/lib/flannel-ebpf/bin/flanneld",
        "opt/fe/lib/flannel-ebpf/mk-docker-opts.sh",
        "opt/fe/lib/flannel-ebpf/lib/shared/flannel_ebpf/_programs/datapath.bpf.o",
        "opt/fe/share/man/man1/flannel-ebpf-doctor.1",
        "opt/fe/share/bash-completion/completions/flannel-ebpf",
        "etc/default/flannel-ebpf",
    ):
        assert (tmp_path / path).exists(), path
    unit = (tmp_path / "opt/fe/lib/systemd/system/flannel-ebpf.service").read_text()
    assert "ExecStart=/opt/fe/bin/flannel-ebpf up" in unit
