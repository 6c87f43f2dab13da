"""Something that runs commands in a network namespace of the lab."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from typing import IO, Any

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Address, Family, family_of, ipv4, ipv6
from flannel_ebpf.lab import command as commands
from flannel_ebpf.lab import netns


class Host:
    """A node or a pod: `name` in the lab, namespace `ns`, one address of a family."""

    def __init__(self, name: str, ns: str, *addresses: Address) -> None:
        self.name = name
        self.ns = ns
        self.addresses = {family_of(one): one for one in sorted(addresses, key=family_of)}

    def __repr__(self) -> str:
        addresses = " ".join(map(str, self.addresses.values()))
        return f"<{type(self).__name__} {self.name} {addresses} in {self.ns}>"

    def at(self, family: Family) -> Address:
        """Return the address of a family; raises LabError when there is none."""
        try:
            return self.addresses[family]
        except KeyError:
            raise LabError(f"{self.name} has no {family} address") from None

    @property
    def ip(self) -> IPv4Address:
        """The IPv4 address."""
        return ipv4(self.at(Family.V4))

    @property
    def ip6(self) -> IPv6Address:
        """The IPv6 address."""
        return ipv6(self.at(Family.V6))

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
