"""Flannel's tables through nft: read as JSON, which no version words differently, and changed rule by rule.

Each family has one. flanneld makes both, also where one of them stays empty.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.desired.firewall_rules import (
    NFT_CHAINS,
    NFT_FAMILIES,
    NFT_TABLES,
    is_anothers,
    is_shared,
    place_of,
)
from flannel_ebpf.desired.firewall_text import nft_meaning
from flannel_ebpf.kernel.firewall.tools import run


class _Rule(NamedTuple):
    meaning: str
    handle: int


def read(family: Family) -> list[str]:
    """Return "<chain> <rule>" for every rule in flannel's chains."""
    return [rule.meaning for rule in _read(family)]


def _table(family: Family) -> str:
    return f"{NFT_FAMILIES[family]} {NFT_TABLES[family]}"


def _read(family: Family) -> list[_Rule]:
    rules = [one["rule"] for one in _listed(family) if "rule" in one]
    return [
        _Rule(f"{chain.name} {nft_meaning(rule['expr'])}", rule["handle"])
        for chain in NFT_CHAINS
        for rule in rules
        if rule["chain"] == chain.name
    ]


def _listed(family: Family) -> list[dict[str, Any]]:
    """Return what is in a table, nothing when it is not there; raises KernelError."""
    command = ["nft", "--json", "list", "table", *_table(family).split()]
    try:
        text = run(command)
    except KernelError as error:
        if "No such file" in str(error):
            return []
        raise
    try:
        return list(json.loads(text)["nftables"])
    except (ValueError, KeyError, TypeError) as error:
        raise KernelError(
            f"{' '.join(command)}: it answered {text[:80]!r}, which is not nft's JSON"
        ) from error


def replace(network: Network, wanted: Sequence[str]) -> None:
    """Make `wanted` the network's rules, in one transaction; rules of other networks are not touched.

    Rules go by their handles: when somebody has changed them since they were read, the kernel refuses it all.
    """
    family = family_of(network)
    [other] = (one for one in Family if one is not family)
    present = _read(family)
    if wanted:
        _write([*_declarations(family), *_changes(present, network, wanted)])
        with suppress(KernelError):  # a kernel without IPv6 has no such family
            _write([_declaration(other)])
    elif any(is_anothers(rule.meaning, network) for rule in present):
        _write(_changes(present, network, ()))
    else:
        _write([f"add table {_table(family)}", f"delete table {_table(family)}"])
        if not any("chain" in one for one in _listed(other)):
            with suppress(KernelError):
                _write([f"delete table {_table(other)}"])


def _write(lines: Iterable[str]) -> None:
    run(["nft", "--file", "-"], "".join(f"{line}\n" for line in lines))


def _declaration(family: Family) -> str:
    return f"add table {_table(family)} {{ {_comment(f'rules for {NFT_TABLES[family]}')} }}"


def _declarations(family: Family) -> Iterator[str]:
    yield _declaration(family)
    for chain in NFT_CHAINS:
        content = f"{chain.declaration} {_comment(chain.comment)}"
        yield f"add chain {_table(family)} {chain.name} {{ {content} }}"


def _changes(present: Sequence[_Rule], network: Network, wanted: Sequence[str]) -> Iterator[str]:
    """Yield what leaves in each chain the shared rules, then other networks' as they stand, then `wanted`."""
    table = _table(family_of(network))
    others = {place_of(rule.meaning) for rule in present if is_anothers(rule.meaning, network)}
    shared = [rule for rule in dict.fromkeys([*wanted, *(one.meaning for one in present)]) if is_shared(rule)]
    needed = others | {place_of(rule) for rule in wanted}
    for rule in present:
        if not is_anothers(rule.meaning, network):
            yield f"delete rule {table} {place_of(rule.meaning)} handle {rule.handle}"
    for text in reversed(shared):
        if place_of(text) in needed:
            yield f"insert rule {table} {text}"
    for text in wanted:
        if not is_shared(text):
            yield f"add rule {table} {text}"


@cache
def _comments() -> bool:
    """Say whether this nft and kernel know comments of tables and chains, which are for people only."""
    try:
        run(["nft", "--check", "--file", "-"], 'add table ip flannel-check { comment "x"; }\n')
    except KernelError:
        return False
    return True


def _comment(text: str) -> str:
    return f'comment "{text}";' if _comments() else ""


def supports_random_fully() -> bool:
    """Say whether the installed tool can give masqueraded connections random ports."""
    chain = "add chain ip flannel-check c { type nat hook postrouting priority 100; }"
    try:
        run(
            ["nft", "--check", "--file", "-"],
            f"add table ip flannel-check; {chain}; add rule ip flannel-check c masquerade fully-random\n",
        )
    except KernelError:
        return False
    return True
