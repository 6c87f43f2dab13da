"""Flannel's firewall rules in the kernel, read and replaced through iptables and nft.

A change is one `iptables-restore` or `nft -f` run: the kernel swaps the chain's content at once, and no
packet meets a half-filled chain. Rules of other networks in the same chains are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Network, family_of
from flannel_ebpf.desired.firewall_rules import TOOLS, Tool, owned
from flannel_ebpf.desired.objects import Object, Ruleset
from flannel_ebpf.desired.plan import Failure, Op, Put
from flannel_ebpf.kernel.firewall import iptables, nft

_EDGES = {"iptables": iptables, "nftables": nft}


class Rules:
    """Firewall rules of the network namespace of the process."""

    def read(self, network: Network, tools: Sequence[Tool] = TOOLS) -> set[Object]:
        """Return one network's rules, one Ruleset per tool that holds any.

        Reading both lets a node that changed its tool drop the other's rules, as flannel does. A tool that
        is missing or does not work holds none: where its rules are wanted, `apply` will say what is wrong
        with it, and everything else goes on.
        """
        found: set[Object] = set()
        for tool in tools:
            try:
                rules = owned(_EDGES[tool].read(family_of(network)), network)
            except KernelError:
                continue
            if rules:
                found.add(Ruleset(tool, str(network), rules))
        return found

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out every operation on a Ruleset; return those that failed."""
        failures = []
        for op in ops:
            if not isinstance(op.obj, Ruleset):
                failures.append(Failure(op, KernelError(f"{type(op.obj).__name__} is no firewall rule")))
                continue
            wanted = op.obj.rules if isinstance(op, Put) else ()
            try:
                _EDGES[op.obj.backend].replace(ip_network(op.obj.name), wanted)
            except KernelError as error:
                failures.append(Failure(op, error))
        return failures


def supports_random_fully(tool: Tool) -> bool | None:
    """Say whether the installed tool can give masqueraded connections random ports.

    None when it cannot be asked; rules that it should write then fail by themselves, and say why.
    """
    try:
        return iptables.supports_random_fully() if tool == "iptables" else nft.supports_random_fully()
    except KernelError:
        return None
