"""Flannel's firewall rules in the kernel, read and replaced through iptables and nft.

A change is one `iptables-restore` or `nft -f` run: the kernel swaps the chain's content at once, and no
packet meets a half-filled chain. Rules of other networks in the same chains are kept.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from ipaddress import IPv4Network

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.desired.firewall_rules import (
    IPTABLES_CHAINS,
    NFT_CHAINS,
    NFT_TABLE,
    TOOLS,
    IptablesChain,
    Tool,
    merged,
    owned,
)
from flannel_ebpf.desired.objects import Object, Ruleset
from flannel_ebpf.desired.plan import Failure, Op, Put

_TIMEOUT = 30.0
_LOCK_WAIT = ("--wait", "5")


class Rules:
    """Firewall rules of the network namespace of the process."""

    def read(self, network: IPv4Network, tools: Sequence[Tool] = TOOLS) -> set[Object]:
        """Return one network's rules, one Ruleset per tool that holds any.

        Reading both lets a node that changed its tool drop the other's rules, as flannel does. A tool that
        is missing or does not work holds none: where its rules are wanted, `apply` will say what is wrong
        with it, and everything else goes on.
        """
        found: set[Object] = set()
        for tool in tools:
            try:
                rules = owned(_present(tool), network)
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
                _replace(op.obj, wanted)
            except KernelError as error:
                failures.append(Failure(op, error))
        return failures


def is_legacy() -> bool:
    """Say whether iptables is of the legacy kind, of whose changes the kernel tells nobody."""
    try:
        return "legacy" in _run(["iptables", "--version"])
    except KernelError:  # without the tool nobody changes its rules
        return False


def supports_random_fully(tool: Tool) -> bool:
    """Say whether the installed tool can give masqueraded connections random ports."""
    if tool == "iptables":
        # iptables 1.6.2 was the first; an older one calls the option unknown.
        return "--random-fully" in _run(["iptables", "-j", "MASQUERADE", "--help"])
    check = (
        "add table ip flannel-check; add chain ip flannel-check c { type nat hook postrouting priority 100; }"
    )
    try:
        _run(
            ["nft", "--check", "--file", "-"],
            f"{check}; add rule ip flannel-check c masquerade fully-random\n",
        )
    except KernelError:
        return False
    return True


def _present(tool: Tool) -> list[str]:
    return _read_iptables() if tool == "iptables" else _read_nft()


def _replace(obj: Ruleset, wanted: Sequence[str]) -> None:
    network = IPv4Network(obj.name)
    if obj.backend == "iptables":
        present = _read_iptables()
        _run(
            ["iptables-restore", "--noflush", *_LOCK_WAIT],
            _restore_text(present, merged(present, network, wanted)),
        )
    else:
        _run(["nft", "--file", "-"], _nft_text(merged(_read_nft(), network, wanted)))


def _read_iptables() -> list[str]:
    """Return "<table> <rule>" for all jumps to flannel's chains, then all rules in them."""
    rules = []
    for chain in IPTABLES_CHAINS:
        lines = _run(["iptables-save", "--table", chain.table]).splitlines()
        own = [line for line in lines if line.startswith(f"-A {chain.name} ")]
        rules += [f"{chain.table} {line}" for line in [*(n for n in lines if n == chain.jump), *own]]
    return rules


def _restore_text(present: Sequence[str], rules: Sequence[str]) -> str:
    return "".join(_restore_table(chain, present, rules) for chain in IPTABLES_CHAINS)


def _restore_table(chain: IptablesChain, present: Sequence[str], rules: Sequence[str]) -> str:
    jump = f"{chain.table} {chain.jump}"
    jumps = sum(rule == jump for rule in present)
    body = [rule for rule in rules if rule.startswith(f"{chain.table} ")]
    # ":CHAIN" makes the chain, or empties it; like every line it takes effect at COMMIT.
    lines = [f"*{chain.table}", f":{chain.name} - [0:0]"]
    lines += [f"-D{chain.jump[2:]}"] * (jumps - (1 if body else 0))
    lines += [] if jumps or not body else [chain.jump]
    lines += [rule.split(" ", 1)[1] for rule in body if rule != jump]
    lines += [] if body else [f"-X {chain.name}"]
    return "\n".join([*lines, "COMMIT", ""])


def _read_nft() -> list[str]:
    """Return "<chain> <rule>" for every rule of flannel's table."""
    if f"table ip {NFT_TABLE}\n" not in _run(["nft", "list", "tables", "ip"]):
        return []
    rules = []
    chain = ""
    for line in _run(["nft", "list", "table", "ip", NFT_TABLE]).splitlines():
        text = line.strip()
        if text.startswith("chain "):
            chain = text.split()[1]
        elif chain and text and not text.startswith(("type ", "}")):
            rules.append(f"{chain} {text}")
    order = list(NFT_CHAINS)
    return sorted(
        (rule for rule in rules if rule.split()[0] in order), key=lambda r: order.index(r.split()[0])
    )


def _nft_text(rules: Sequence[str]) -> str:
    if not rules:
        return f"add table ip {NFT_TABLE}\ndelete table ip {NFT_TABLE}\n"
    lines = [f"add table ip {NFT_TABLE}"]
    for chain, declaration in NFT_CHAINS.items():
        lines += [
            f"add chain ip {NFT_TABLE} {chain} {{ {declaration} }}",
            f"flush chain ip {NFT_TABLE} {chain}",
        ]
    return "\n".join([*lines, *(f"add rule ip {NFT_TABLE} {rule}" for rule in rules), ""])


def _run(command: list[str], text: str = "") -> str:
    """Run a tool to its end and return its output. Raises KernelError with the tool's own words."""
    try:
        done = subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=_TIMEOUT, check=True
        )
    except FileNotFoundError as error:
        raise KernelError(f"{command[0]} is not installed: firewall rules need it") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{command[0]} did not end within {_TIMEOUT:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"status {error.returncode}"
        raise KernelError(f"{' '.join(command)}: {said}") from error
    return done.stdout
