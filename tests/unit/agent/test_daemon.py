"""How a daemon ends: of what it was told, and of a thread that died while it joined."""

from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_ebpf.agent import daemon
from flannel_ebpf.agent.daemon import Daemon
from flannel_ebpf.agent.wake import Stop, Wake
from flannel_ebpf.base.errors import ThreadDied
from flannel_ebpf.base.options import Options


class Silent:
    """A source of leases that answers nothing until it is interrupted; then as etcd's client does."""

    def __init__(self, stop: Stop) -> None:
        self.where = "nowhere"
        self._stop = stop

    def network_config(self) -> Any:
        assert self._stop.wait(20)
        raise daemon.Stopped("told to stop")

    def interrupt(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def joining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Daemon, Stop]:
    stop = Stop()
    monkeypatch.setattr(daemon, "open_source", lambda *_: Silent(stop))
    monkeypatch.setattr(daemon, "persist", lambda ask, *_: ask())
    options = Options(state_dir=tmp_path)
    with ExitStack() as stack:
        return Daemon(options, stop, Wake(), stack), stop


def test_a_thread_that_dies_while_the_daemon_joins_ends_it_with_an_error(
    joining: tuple[Daemon, Stop],
) -> None:
    """Status 0 would keep systemd's Restart=on-failure from starting it again."""
    started, _ = joining

    def bug() -> None:
        raise ZeroDivisionError("a bug")

    def later() -> None:
        thread = cast(threading.Thread, SimpleNamespace(name="etcd-watch"))
        try:
            bug()
        except ZeroDivisionError as error:
            trace = error.__traceback__
            started._on_bug(threading.ExceptHookArgs([ZeroDivisionError, error, trace, thread]))

    threading.Timer(0.1, later).start()
    with pytest.raises(ThreadDied, match="a bug ended thread etcd-watch: ZeroDivisionError: a bug"):
        started.run()


def test_one_that_is_told_to_stop_while_it_joins_just_stops(joining: tuple[Daemon, Stop]) -> None:
    started, stop = joining
    threading.Timer(0.1, stop.set).start()
    with pytest.raises(daemon.Stopped):
        started.run()
