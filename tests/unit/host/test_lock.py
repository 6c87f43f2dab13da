from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import AlreadyRunning, ConfigError
from flannel_ebpf.host.lock import claim, claimant, lock_path, network_lock, serving

NETWORK, OTHER = IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16")

HOLDER = """
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Network
from pathlib import Path
from flannel_ebpf.host.lock import network_lock
with network_lock(Path(sys.argv[1]), IPv4Network(sys.argv[2])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_lock_file_is_named_after_the_network_and_says_who_holds_it(tmp_path: Path) -> None:
    with network_lock(tmp_path / "state", NETWORK) as path:
        assert path == tmp_path / "state" / "10.1.0.0-16.lock"
        assert path.read_text() == f"{os.getpid()} daemon\n"
        assert serving(path) == os.getpid()
    with network_lock(tmp_path / "state", NETWORK, "down"):
        assert serving(path) == 0
    assert serving(path) == 0


def test_who_has_only_just_taken_the_lock_is_no_daemon(tmp_path: Path) -> None:
    """The file still says what the former holder wrote, or nothing; a daemon of old said no role."""
    with network_lock(tmp_path, NETWORK) as path:
        for said in ("1 daemon\n", "", "no number\n", b"\xff"):
            path.write_bytes(said.encode() if isinstance(said, str) else said)
            assert serving(path) == 0
        path.write_text(f"{os.getpid()}\n")
        assert serving(path) == os.getpid()


def test_nobody_else_can_take_the_lock(tmp_path: Path) -> None:
    path = lock_path(tmp_path, NETWORK)
    path.write_text("1234\n")
    path.chmod(0o666)
    with network_lock(tmp_path, NETWORK):
        assert path.stat().st_mode & 0o777 == 0o600


def test_a_link_in_the_locks_place_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious")
    lock_path(tmp_path, NETWORK).symlink_to(target)
    with pytest.raises(ConfigError, match="--state-dir"), network_lock(tmp_path, NETWORK):
        pass
    assert target.read_text() == "precious"


def test_a_second_daemon_is_told_process_and_file(tmp_path: Path) -> None:
    with (
        network_lock(tmp_path, NETWORK) as path,
        pytest.raises(AlreadyRunning) as caught,
        network_lock(tmp_path, NETWORK),
    ):
        pass
    message = str(caught.value)
    assert f"process {os.getpid()}" in message
    assert str(path) in message
    assert "10.1.0.0/16" in message
    assert path.read_text() == f"{os.getpid()} daemon\n"


def test_networks_do_not_exclude_each_other(tmp_path: Path) -> None:
    with network_lock(tmp_path, NETWORK), network_lock(tmp_path, OTHER):
        pass


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="inside"), network_lock(tmp_path, NETWORK):
            raise ValueError("inside")


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path), str(NETWORK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(AlreadyRunning, match=f"process {holder.pid},"), network_lock(tmp_path, NETWORK):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with network_lock(tmp_path, NETWORK) as path:
            assert path.read_text() == f"{os.getpid()} daemon\n"


def test_commands_that_a_holder_starts_do_not_inherit_the_lock(tmp_path: Path) -> None:
    with network_lock(tmp_path, NETWORK) as path:
        child = subprocess.run(
            ["find", "/proc/self/fd", "-lname", str(path)], check=True, capture_output=True, close_fds=False
        )
    assert child.stdout == b""


def test_a_state_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match=r"--state-dir: .*file.*folder that can be written"),
        network_lock(tmp_path / "file", NETWORK),
    ):
        pass


CLAIMANT = """
import os, socket, sys
name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name.bind("\\0flannel-ebpf " + sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_claimant(what: str, user: int) -> Iterator[subprocess.Popen[bytes]]:
    command = ["/usr/bin/python3", "-c", CLAIMANT, what]  # another user need not reach our own
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, user=user, cwd="/") as process:
        assert process.stdout
        assert process.stdout.readline() == b"held\n"
        yield process


def thing() -> str:
    return f"device test-{os.getpid()}"


def test_a_thing_is_claimed_once_and_by_whom_is_said() -> None:
    with another_claimant(thing(), os.geteuid()) as process:
        assert claimant(thing()) == process.pid
        with (
            pytest.raises(AlreadyRunning, match=rf"process {process.pid}\): advice"),
            claim(thing(), "advice"),
        ):
            pass
    assert claimant(thing()) == 0
    with claim(thing(), "advice"):
        assert claimant(thing()) == os.getpid()


def test_another_users_claim_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    with another_claimant(thing(), 65534) as process:
        assert claimant(thing()) == 0
        with claim(thing(), "advice"):
            assert f"{thing()} is claimed by processes of other users" in caplog.text
            assert str(process.pid) in caplog.text
