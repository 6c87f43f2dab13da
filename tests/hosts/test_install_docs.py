"""docs/install.md's commands, line by line as they stand there, on a booted Debian."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from tests.hosts.machine import TOP, Machine
from tests.netns.life import ready
from tests.polls import eventually

SETTINGS = f"FLANNELD_ETCD_ENDPOINTS={ETCD_ENDPOINT}\nFLANNELD_IFACE=eth0\n"
FLANNELD = """
[Service]
Type=notify
EnvironmentFile=/etc/sysconfig/flanneld
ExecStart=/opt/bin/flanneld
Restart=always
[Install]
WantedBy=multi-user.target
"""


def commands(heading: str) -> list[str]:
    """Return the lines of code under a heading, without their comments."""
    text = (TOP / "docs" / "install.md").read_text()
    part = re.split(r"^## ", text, flags=re.MULTILINE)
    (own,) = (one for one in part if one.startswith(heading))
    return [re.sub(r" {2,}#.*", "", line.strip()) for line in own.splitlines() if line.startswith("    ")]


@pytest.fixture
def host(root: Path, lab: Lab, deb: Path) -> Iterator[Machine]:
    """A fresh host with the package beside it; the other node of its cluster is there already."""
    lab.node("n2").start_daemon()
    ready(lab.node("n2"))
    with Machine("hosts-n1", root, lab.node("n1").ns) as machine:
        machine.copy(deb, f"/root/{deb.name}")
        editor = f"#!/bin/sh\ncat >> $1 <<'E'\n{SETTINGS}E\n"
        machine.sh(f"cat > /usr/bin/editor <<'X'\n{editor}X\nchmod 755 /usr/bin/editor")
        yield machine


def follow(host: Machine, lines: list[str]) -> None:
    for line in lines:
        host.sh(f"cd /root; {line.replace('apt-get install', 'apt-get -qq -y install')} < /dev/null")


def test_a_node(host: Machine, lab: Lab) -> None:
    lines = commands("A node")
    assert [line.split()[0] for line in lines] == [
        "apt-get", "editor", "systemctl", "flannel-ebpf", "flannel-ebpf", "flannel-ebpf"
    ]  # fmt: skip
    follow(host, lines)
    assert "BPF by" in host.sh("systemctl status --no-pager flannel-ebpf")
    follow(host, ["flannel-ebpf down --purge", "apt-get -y purge flannel-ebpf"])
    assert "flannel.1" not in lab.node("n1").run(["ip", "link"]).stdout


def test_from_flannel_and_back(host: Machine, lab: Lab) -> None:
    folder = subprocess.run([TOP / "tools" / "flannel.sh"], stdout=subprocess.PIPE, text=True, check=True)
    host.sh("mkdir -p /opt/bin /etc/sysconfig")
    shutil.copy(Path(folder.stdout.strip()) / "flanneld", host.root / "opt/bin/flanneld")
    (host.root / "etc/sysconfig/flanneld").write_text(SETTINGS)
    (host.root / "etc/systemd/system/flanneld.service").write_text(FLANNELD)
    node, other = lab.node("n1"), lab.node("n2")
    host.sh("systemctl daemon-reload; systemctl enable --now flanneld")
    eventually(
        lambda: "FLANNEL_SUBNET" in host.sh("cat /run/flannel/subnet.env", check=False), "flanneld", 30
    )

    def stands() -> tuple[str, str]:
        link = node.run(["ip", "-o", "link", "show", "flannel.1"]).stdout
        return host.sh("grep FLANNEL_SUBNET= /run/flannel/subnet.env"), link.partition(":")[0]

    before = stands()
    node.subnet_file.write_text(host.sh("cat /run/flannel/subnet.env"))
    one, two = node.add_pod(), other.add_pod()
    eventually(lambda: one.run(["ping", "-c1", "-W1", str(two.ip)], check=False).returncode == 0, "pods talk")
    ping = one.popen(["ping", "-q", "-i", "0.05", "-w", "600", str(two.ip)])
    lines = commands("Switch from flannel")
    back = lines.index("systemctl disable --now flannel-ebpf")
    follow(host, lines[:back])
    assert node.hooks()
    assert stands() == before
    follow(host, lines[back:])
    assert node.hooks() == []
    assert stands() == before
    ping.send_signal(2)
    sent, received = map(
        int, re.findall(r"(\d+) packets transmitted, (\d+) received", ping.communicate()[0])[0]
    )
    assert sent > 20
    assert received == sent
