"""Special files where ours should be: nobody waits for one or reads one without end; writing heals."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.host import docker_opts, files, lock, remembered, report, subnet_env, watching
from flannel_ebpf.host.files import read_small, replace_file
from flannel_ebpf.host.places import place

NETWORK = IPv4Network("10.1.0.0/16")
ENV = subnet_env.SubnetEnv((NETWORK,), (IPv4Network("10.1.74.0/24"),), 1450, False)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def a_large_file(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


STRANGE: dict[str, Callable[[Path], object]] = {
    "a FIFO": os.mkfifo,
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path),
    "a socket": a_socket,
    "a folder": Path.mkdir,
    "a terabyte": a_large_file,
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00"),
}


def in_time(ask: Callable[[], object]) -> object:
    """Return the answer; a FIFO without a writer would keep a reader for ever."""
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "no answer in time"
    return answers[0]


def refused(path: Path) -> str:
    try:
        return read_small(path)
    except (OSError, ValueError) as error:
        return str(error)


@pytest.mark.parametrize("strange", STRANGE)
def test_what_stands_in_the_place_of_a_file_keeps_no_reader(tmp_path: Path, strange: str) -> None:
    path = tmp_path / "file"
    STRANGE[strange](path)
    assert in_time(lambda: refused(path)) != ""


@pytest.mark.parametrize("strange", STRANGE)
def test_every_file_of_ours_may_be_something_else(tmp_path: Path, strange: str) -> None:
    for suffix in (report.SUFFIX, remembered.SUFFIX, watching.SUFFIX, ".lock"):
        STRANGE[strange](place(tmp_path, NETWORK, suffix))
    env = tmp_path / "subnet.env"
    STRANGE[strange](env)
    assert in_time(lambda: report.read(tmp_path, NETWORK)) is None
    assert in_time(lambda: remembered.read(tmp_path, NETWORK)) == remembered.Before()
    assert in_time(lambda: watching.sample(tmp_path, NETWORK)) == 0
    assert in_time(lambda: lock.serving(lock.lock_path(tmp_path, NETWORK))) == 0
    previous = in_time(lambda: subnet_env.read(env))
    assert isinstance(previous, subnet_env.Previous)
    assert previous.subnets == ()
    assert str(env) in previous.warning
    with pytest.raises(ConfigError, match=str(env)):
        docker_opts.read_values(env)
    if strange == "a folder":
        with pytest.raises(ConfigError, match="Is a directory"):
            subnet_env.update(env, ENV)
        return
    in_time(lambda: subnet_env.update(env, ENV) or True)
    assert env.read_text() == subnet_env.render(ENV)
    in_time(lambda: remembered.remember_routes(tmp_path, NETWORK, [NETWORK]) or True)
    assert remembered.read(tmp_path, NETWORK).routes == (NETWORK,)


def test_a_links_target_is_left_alone(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_text("somebody's")
    path.symlink_to(target)
    (tmp_path / ".file.new").symlink_to(target)
    replace_file(path, "ours")
    assert (path.read_text(), target.read_text()) == ("ours", "somebody's")


def test_writers_that_are_killed_leave_one_file_and_the_next_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"

    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patched:
        patched.setattr(files.Path, "rename", killed)
        patched.setattr(files.Path, "unlink", lambda *_, **__: None)
        with pytest.raises(SystemExit):
            replace_file(path, "half")
    assert len(list(tmp_path.iterdir())) == 1
    replace_file(path, "whole")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    assert path.read_text() == "whole"
