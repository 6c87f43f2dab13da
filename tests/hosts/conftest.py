"""What tests with hosts of their own need: roots, packages, labs without daemons."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab, LabSpec
from tests.hosts.machine import TOP, debian

RELEASES = {"debian-12": "bookworm", "debian-13": "trixie"}
SYSTEM = ("systemd", "systemd-sysv", "dbus", "procps", "iputils-ping")
NEEDED = ("python3", "python3-bpfcc", "iproute2", "iptables", "nftables")
"""What the package depends on: the lab's nodes have no way to Debian's mirrors."""


@pytest.fixture(scope="session")
def deb() -> Path:
    """The package, built of this tree."""
    subprocess.run(["make", "--no-print-directory", "-C", TOP, "deb"], check=True)
    (found,) = (TOP / "dist").glob("flannel-ebpf_*.deb")
    return found


@pytest.fixture(scope="session")
def newer_deb(deb: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a higher version."""
    tree = tmp_path_factory.mktemp("newer")
    subprocess.run(["dpkg-deb", "-R", deb, tree / "deb"], check=True)
    control = tree / "deb/DEBIAN/control"
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join("Version: 0.1.0+newer\n" if "Version:" in line else line for line in lines))
    subprocess.run(["dpkg-deb", "-Znone", "-b", tree / "deb", tree / "newer.deb"], check=True)
    return tree / "newer.deb"


@pytest.fixture(scope="session", params=sorted(RELEASES))
def root(request: pytest.FixtureRequest) -> Path:
    """A Debian with systemd: 12, then 13."""
    return debian(request.param, RELEASES[request.param], *SYSTEM, *NEEDED)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """Two nodes without daemons, and etcd with a vxlan network."""
    with Lab.up(LabSpec(name="hosts", nodes=2, start_daemons=False, pods_per_node=0)) as made:
        yield made
