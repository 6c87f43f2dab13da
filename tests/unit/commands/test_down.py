"""`down` before it touches the kernel: which networks there are, and that their daemons stop."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.agent import status_file
from flannel_ebpf.base.errors import AlreadyRunning
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands import down
from flannel_ebpf.host.lock import holder, lock_path, network_lock

NETWORK = IPv4Network("10.1.0.0/16")

HOLDER = """
import signal, sys, time
from ipaddress import IPv4Network
from pathlib import Path
from flannel_ebpf.host.lock import network_lock
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with network_lock(Path(sys.argv[1]), IPv4Network("10.1.0.0/16")):
    print("held", flush=True)
    time.sleep(60)
"""


def options(folder: Path) -> Options:
    return Options(
        state_dir=folder / "state", subnet_file=folder / "subnet.env", bpf_pin_root=folder / "pins"
    )


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
        assert down.down(options(tmp_path), purge=True, release=False) == 0
    assert "nothing to do" in caplog.text
    assert list(tmp_path.iterdir()) == []


def test_each_place_alone_names_its_networks(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    (tmp_path / "subnet.env").write_text("FLANNEL_NETWORK=10.3.0.0/16\nFLANNEL_SUBNET=10.3.5.1/24\n")
    (tmp_path / "pins" / "10-2-0-0-16").mkdir(parents=True)
    (tmp_path / "pins" / "somebody-elses").mkdir()
    chosen.state_dir.mkdir()
    status_file.path_of(chosen.state_dir, NETWORK).write_text(json.dumps({"network": str(NETWORK)}))
    status_file.path_of(chosen.state_dir, IPv4Network("10.9.0.0/16")).write_text("{")
    expected = {NETWORK, IPv4Network("10.2.0.0/16"), IPv4Network("10.3.0.0/16")}
    assert down._known(chosen) == expected


def test_the_subnet_is_told_by_the_report_or_else_by_subnet_env(tmp_path: Path) -> None:
    chosen = options(tmp_path)
    assert down._subnet(chosen, NETWORK) == IPv4Network("10.1.0.0/32")
    chosen.subnet_file.write_text("FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.5.1/24\n")
    assert down._subnet(chosen, NETWORK) == IPv4Network("10.1.5.0/24")
    assert down._subnet(chosen, IPv4Network("10.2.0.0/16")) == IPv4Network("10.2.0.0/32")
    chosen.state_dir.mkdir()
    status_file.path_of(chosen.state_dir, NETWORK).write_text('{"subnet": "10.1.7.0/24"}')
    assert down._subnet(chosen, NETWORK) == IPv4Network("10.1.7.0/24")


def test_a_running_daemon_is_stopped_and_its_lock_taken(tmp_path: Path) -> None:
    with daemon(tmp_path) as process:
        with down._daemon_stopped(tmp_path / "state", NETWORK):
            assert process.wait(5) != 0
            with pytest.raises(AlreadyRunning), network_lock(tmp_path / "state", NETWORK):
                pass
        assert holder(lock_path(tmp_path / "state", NETWORK)) == 0


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
