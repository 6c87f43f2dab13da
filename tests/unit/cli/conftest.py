"""A daemon that only keeps its options, in place of the real one; no flag comes from the environment."""

from __future__ import annotations

import logging
import sys
from types import ModuleType

import pytest

from flannel_ebpf.base.options import Options
from flannel_ebpf.cli import main


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No FLANNELD_* variable of the machine, and the logging set-up of a command ends with its test."""
    import os  # noqa: PLC0415 - only here

    for name in os.environ:
        if name.startswith("FLANNELD_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(logging.root, "handlers", [])


class Daemon:
    """Stands where the daemon is: keeps the options it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Options] = []
        self.status = 0
        self.failure: Exception | None = None
        module = ModuleType("flannel_ebpf.agent.daemon")
        module.run = self.run  # type: ignore[attr-defined] # a module made by hand
        monkeypatch.setitem(sys.modules, "flannel_ebpf.agent.daemon", module)

    def run(self, options: Options) -> int:
        self.calls.append(options)
        if self.failure:
            raise self.failure
        return self.status

    def options(self, *arguments: str) -> Options:
        assert main(["up", *arguments]) == 0
        return self.calls.pop()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)
