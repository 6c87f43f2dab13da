"""`down` before it touches the kernel: which networks there are, and that their daemons stop."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.errors import AlreadyRunning, ConfigError
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands import down
from flannel_ebpf.commands.teardown import own_subnet
from flannel_ebpf.commands.which import Asked, chosen, known
from flannel_ebpf.host import remembered, report
from flannel_ebpf.host.lock import claimant, holder, lock_path, network_lock
from tests.namespaces import inside, new_namespace

NETWORK = IPv4Network("10.1.0.0/16")

HOLDER = """
import signal, sys, time
from ipaddress import IPv4Network
from pathlib import Path
from contextlib import nullcontext
from flannel_ebpf.host.lock import claim, network_lock
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
role = "down" if sys.argv[2] == "down" else "daemon"
claimed = nullcontext() if sys.argv[2] in ("down", "old") else claim("network 10.1.0.0/16", "")
with network_lock(Path(sys.argv[1]), IPv4Network("10.1.0.0/16"), role), claimed:
    print("held", flush=True)
    time.sleep(1 if sys.argv[2] == "down" else 60)
"""


def options(folder: Path) -> Options:
    return Options(
        state_dir=folder / "state", subnet_file=folder / "subnet.env", bpf_pin_root=folder / "pins"
    )


@pytest.fixture
def own_network_namespace() -> Iterator[None]:
    """Claims are names of a network namespace: tests of other processes have the same ones."""
    with inside(namespace := new_namespace()):
        yield
    os.close(namespace)


@contextmanager
def daemon(folder: Path, manner: str = "obedient") -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", HOLDER, str(folder / "state"), manner]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout
            assert process.stdout.readline() == b"held\n"
            yield process
        finally:
            process.kill()


def test_nothing_known_is_nothing_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert down.down(options(tmp_path), Asked(), purge=True, release=False, force=False) == 0
    assert "nothing to do" in caplog.text
    assert list(tmp_path.iterdir()) == []


OTHER, THIRD, FOURTH = (IPv4Network(f"10.{number}.0.0/16") for number in (2, 3, 4))


def content(network: IPv4Network = NETWORK, **changes: Any) -> report.Content:
    return {
        "pid": 1,
        "network": str(network),
        "etcd_prefix": "/one",
        "backend": "vxlan",
        "overlay": "flannel.1",
        "uplink": "eth0",
        "public_ip": "192.0.2.1",
        "subnet": f"{network.network_address + 0x700}/24",
        "families": [],
        "reservation": False,
        "datapath": {"asked": "auto", "accelerated": True, "attach": "tcx", "why_not": ""},
        "peers": {"wanted": 3, "held": ""},
        "on_demand": -1,
        "pods": 2,
        "free": 0,
        "guards": [],
        "skipped": [],
        "ready": True,
        "lacks": [],
        "warnings": [],
        "failures": [],
        "handed_over": False,
        "etcd": {
            "endpoints": ["http://192.0.2.9:2379"],
            "prefix": "/one",
            "keyfile": "",
            "certfile": "",
            "cafile": "",
            "username": "",
            "answered_at": 60,
        },
        "kube": {"node": "", "api_url": "", "kubeconfig_file": "", "annotation_prefix": "", "answered_at": 0},
        "options": {"fastpath": "flows", "ip_masq": True},
        **changes,
    }


def test_each_place_alone_names_its_networks_but_subnet_env_may_be_flannelds(tmp_path: Path) -> None:
    chosen_options = options(tmp_path)
    (tmp_path / "subnet.env").write_text("FLANNEL_NETWORK=10.9.0.0/16\nFLANNEL_SUBNET=10.9.5.1/24\n")
    (tmp_path / "pins" / "10-2-0-0-16").mkdir(parents=True)
    (tmp_path / "pins" / "somebody-elses").mkdir()
    chosen_options.state_dir.mkdir()
    report.write(chosen_options.state_dir, content())
    report.path_of(chosen_options.state_dir, FOURTH).write_text("{")
    remembered.remember_sysctl(chosen_options.state_dir, THIRD, "net/a", "0")
    assert known(chosen_options) == {NETWORK: content(), OTHER: None, THIRD: None, FOURTH: None}


def test_only_the_networks_that_are_named_are_meant(tmp_path: Path) -> None:
    here = options(tmp_path)
    here.state_dir.mkdir()
    report.write(here.state_dir, content())
    report.write(here.state_dir, content(OTHER, etcd_prefix="/two"))
    assert list(chosen(here, Asked())) == [NETWORK, OTHER]
    assert list(chosen(here, Asked(prefix="/two"))) == [OTHER]
    assert list(chosen(here, Asked(networks=[NETWORK]))) == [NETWORK]
    with pytest.raises(ConfigError, match=r"--etcd-prefix: '/three' .*10\.1\.0\.0/16 \(/one\)"):
        chosen(here, Asked(prefix="/three"))
    with pytest.raises(ConfigError, match=r"--network: '10\.3\.0\.0/16'"):
        chosen(here, Asked(networks=[THIRD]))
    report.path_of(here.state_dir, OTHER).write_text("[]")
    assert list(chosen(here, Asked(prefix="/three"))) == [OTHER]  # its prefix is not known


def test_the_subnet_is_told_by_the_report_or_else_by_subnet_env(tmp_path: Path) -> None:
    here = options(tmp_path)
    assert own_subnet(here, NETWORK, None) == IPv4Network("10.1.0.0/32")
    here.subnet_file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\n")
    assert own_subnet(here, NETWORK, None) == IPv4Network("10.1.5.0/24")
    assert own_subnet(here, OTHER, None) == IPv4Network("10.2.0.0/32")
    assert own_subnet(here, NETWORK, content()) == IPv4Network("10.1.7.0/24")


@pytest.mark.usefixtures("own_network_namespace")
@pytest.mark.parametrize("manner", ["obedient", "old"])
def test_a_running_daemon_is_stopped_and_its_lock_taken(tmp_path: Path, manner: str) -> None:
    with daemon(tmp_path, manner) as process:
        with down._daemon_stopped(tmp_path / "state", NETWORK):
            assert process.wait(5) != 0
            with pytest.raises(AlreadyRunning), network_lock(tmp_path / "state", NETWORK):
                pass
        assert holder(lock_path(tmp_path / "state", NETWORK)) == 0


@pytest.mark.usefixtures("own_network_namespace")
def test_a_daemon_is_found_without_its_files(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        shutil.rmtree(tmp_path / "state")
        with down._daemon_stopped(tmp_path / "state", NETWORK):
            assert process.wait(5) != 0
            assert claimant(f"network {NETWORK}") == 0


@pytest.mark.usefixtures("own_network_namespace")
def test_another_down_is_waited_for_and_not_ended(tmp_path: Path) -> None:
    with daemon(tmp_path, "down") as process, down._daemon_stopped(tmp_path / "state", NETWORK):
        assert process.wait(5) == 0


@pytest.mark.usefixtures("own_network_namespace")
def test_without_a_lock_file_down_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with down._daemon_stopped(tmp_path / "file", NETWORK):
        assert "going on without a lock" in caplog.text


@pytest.mark.usefixtures("own_network_namespace")
def test_a_daemon_that_does_not_stop_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "STOP_SECONDS", 0.3)
    with (
        daemon(tmp_path, "deaf") as process,
        pytest.raises(AlreadyRunning, match=f"process {process.pid},"),
        down._daemon_stopped(tmp_path / "state", NETWORK),
    ):
        pass


def test_a_lock_file_that_names_a_process_of_old_harms_nobody(tmp_path: Path) -> None:
    """Its number may be another process's by now."""
    path = lock_path(tmp_path, NETWORK)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        path.write_text(f"{innocent.pid}\n")
        assert holder(path) == 0
        with down._daemon_stopped(tmp_path, NETWORK):
            assert innocent.poll() is None
        innocent.kill()
