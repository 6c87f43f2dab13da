"""Flannel's chains through iptables-save and iptables-restore, and for IPv6 their ip6tables twins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.desired.firewall_rules import IPTABLES_CHAINS, IptablesChain, merged
from flannel_ebpf.desired.firewall_text import iptables_meaning
from flannel_ebpf.kernel.firewall.tools import run

_LOCK_WAIT = ("--wait", "5")


_COMMANDS = {Family.V4: "iptables", Family.V6: "ip6tables"}


def read(family: Family) -> list[str]:
    """Return "<table> <rule>" for all jumps to flannel's chains, then all rules in them."""
    return [rule for rule, _ in _read(family)]


def _read(family: Family) -> list[tuple[str, str]]:
    """Return the meaning and the words of each."""
    found = []
    for chain in IPTABLES_CHAINS:
        lines = run([f"{_COMMANDS[family]}-save", "--table", chain.table]).split("\n")
        concern = [line for line in lines if f" {chain.name}" in line]
        known = [(iptables_meaning(line), line) for line in concern]
        jumps = [pair for pair in known if pair[0] == chain.jump]
        own = [pair for pair in known if pair[1].startswith(f"-A {chain.name} ")]
        found += [(f"{chain.table} {rule}", words) for rule, words in [*jumps, *own]]
    return found


def replace(network: Network, wanted: Sequence[str]) -> None:
    """Make `wanted` the network's rules, in one run: no packet meets a half-filled chain."""
    family = family_of(network)
    present = _read(family)
    words = dict(present)
    text = "".join(
        _table(chain, [rule for rule, _ in present], merged(words, network, wanted), words)
        for chain in IPTABLES_CHAINS
    )
    run([f"{_COMMANDS[family]}-restore", "--noflush", *_LOCK_WAIT], text)


def _table(
    chain: IptablesChain, present: Sequence[str], rules: Sequence[str], words: Mapping[str, str]
) -> str:
    jump = f"{chain.table} {chain.jump}"
    jumps = present.count(jump)
    body = [rule for rule in rules if rule.startswith(f"{chain.table} ")]
    # ":CHAIN" makes the chain, or empties it; like every line it takes effect at COMMIT.
    lines = [f"*{chain.table}", f":{chain.name} - [0:0]"]
    lines += [f"-D{chain.jump[2:]}"] * (jumps - (1 if body else 0))
    lines += [] if jumps or not body else [chain.jump]
    lines += [words.get(rule, rule.split(" ", 1)[1]) for rule in body if rule != jump]
    lines += [] if body else [f"-X {chain.name}"]
    return "\n".join([*lines, "COMMIT", ""])


def is_legacy() -> bool:
    """Say whether iptables is of the legacy kind, of whose changes the kernel tells nobody."""
    try:
        return "legacy" in run(["iptables", "--version"])
    except KernelError:  # without the tool nobody changes its rules
        return False


def supports_random_fully() -> bool:
    """Say whether the installed tool can give masqueraded connections random ports; raises KernelError."""
    # iptables 1.6.2 was the first; an older one calls the option unknown. ip6tables is the same program.
    return "--random-fully" in run(["iptables", "-j", "MASQUERADE", "--help"])
