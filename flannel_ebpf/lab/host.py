"""Something that runs commands in a network namespace of the lab."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import IO, Any

from flannel_ebpf.lab import command as commands
from flannel_ebpf.lab import netns


class Host:
    """A node or a pod: `name` in the lab, namespace `ns`, address `ip`."""

    def __init__(self, name: str, ns: str, ip: IPv4Address) -> None:
        self.name = name
        self.ns = ns
        self.ip = ip

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self.ip} in {self.ns}>"

    def run(
        self, command: Sequence[str], *, check: bool = True, stdin: str | None = None, timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` here to its end; raises LabError as `flannel_ebpf.lab.command.run` does."""
        return commands.run(netns.inside(self.ns, command), check=check, stdin=stdin, timeout=timeout)

    def popen(
        self,
        command: Sequence[str],
        *,
        stdin: int | IO[Any] | None = subprocess.DEVNULL,
        stdout: int | IO[Any] | None = subprocess.PIPE,
        stderr: int | IO[Any] | None = subprocess.STDOUT,
    ) -> subprocess.Popen[str]:
        """Start `command` here and return at once. `lab down` ends it at the latest."""
        process = subprocess.Popen(
            netns.inside(self.ns, command),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            text=True,
            start_new_session=True,
        )
        netns.wait_inside(self.ns, process.pid)
        return process
