"""All rules of this network namespace for the proof: read when it asks, kept until they change."""

from __future__ import annotations

import socket
from collections.abc import Collection
from dataclasses import dataclass, field

from flannel_ebpf.desired.proof.packets import Version
from flannel_ebpf.desired.proof.ranges import Ranges, exactly, name_number
from flannel_ebpf.desired.proof.rules import BaseChain, Chain, ChainName, TableName
from flannel_ebpf.kernel.firewall import xtables
from flannel_ebpf.kernel.firewall.decode.expressions import decode
from flannel_ebpf.kernel.firewall.decode.legacy import Table
from flannel_ebpf.kernel.firewall.decode.sets import UNKNOWN, Contents, contents
from flannel_ebpf.kernel.firewall.nfnetlink import NftSocket


@dataclass(frozen=True, slots=True)
class SetName:
    """A set or map in a table."""

    table: TableName
    name: str


Part = TableName | ChainName | SetName
"""What may have changed: a table with all its base chains, a chain's rules, a set's elements."""


@dataclass(slots=True)
class _Known:
    """What was read so far, and which chains look into which set."""

    bases: list[BaseChain] | None = None
    chains: dict[ChainName, Chain] = field(default_factory=dict)
    sets: dict[SetName, Contents] = field(default_factory=dict)
    users: dict[SetName, set[ChainName]] = field(default_factory=dict)


class Netfilter:
    """The rules for one IP version. Of use to one thread; methods raise KernelError.

    What was read counts until `forget` names it, those of iptables-legacy until `forget_legacy`.
    """

    def __init__(self, version: Version) -> None:
        self._version: Version = version
        self._asking = NftSocket()
        self._known = _Known()
        self._legacy: dict[str, Table] | None = None

    def close(self) -> None:
        """Close the socket."""
        self._asking.close()

    def bases(self) -> list[BaseChain]:
        """Return all base chains that packets of this version meet, in the order of their priorities."""
        known = self._known
        if known.bases is None:
            known.bases = self._asking.base_chains()
        if self._legacy is None:
            self._legacy = {name: xtables.read(name) for name in self._legacy_names()}
        every = [*known.bases, *(base for table in self._legacy.values() for base in table.bases)]
        other = "ip6" if self._version == 4 else "ip"
        return sorted(
            (base for base in every if base.name.table.kind != other), key=lambda base: base.priority
        )

    def _legacy_names(self) -> list[str]:
        return xtables.names() if self._version == 4 else []

    def chain(self, name: ChainName) -> Chain:
        """Return a chain; one that is gone has no rules."""
        if name.table.kind == "legacy":
            return (self._legacy or {})[name.table.name].chains[name]
        chain = self._known.chains.get(name)
        if chain is None:
            around = _Around(self, name)
            found = (decode(one, self._version, around) for one in self._asking.rules(name))
            chain = Chain(name, tuple(rule for rule in found if rule is not None))
            self._known.chains[name] = chain
        return chain

    def contents(self, user: ChainName, name: str) -> Contents:
        """Return what a set holds into which a chain looks."""
        one = SetName(user.table, name)
        known = self._known
        known.users.setdefault(one, set()).add(user)
        if one not in known.sets:
            declared = self._asking.set_declared(user.table, name)
            known.sets[one] = (
                contents(declared, self._asking.set_elements(user.table, name)) if declared else UNKNOWN
            )
        return known.sets[one]

    def forget(self, parts: Collection[Part]) -> bool:
        """Forget what changed; say whether anything of it had been read."""
        known, found = self._known, False
        for part in parts:
            if isinstance(part, TableName):
                found, known.bases = True, None
            elif isinstance(part, ChainName):
                found = known.chains.pop(part, None) is not None or found
            elif part in known.sets:
                found = True
                del known.sets[part]
                for user in known.users.pop(part, ()):
                    known.chains.pop(user, None)
        return found

    def forget_all(self) -> None:
        """Forget everything: who knows what changed."""
        self._known, self._legacy = _Known(), None

    def forget_legacy(self) -> bool:
        """Read the tables of iptables-legacy again; say whether they changed."""
        before, self._legacy = self._legacy, {name: xtables.read(name) for name in self._legacy_names()}
        return before != self._legacy


@dataclass(frozen=True, slots=True)
class _Around:
    """What the rules of one chain refer to."""

    netfilter: Netfilter
    chain: ChainName

    def contents(self, name: str) -> Contents:
        return self.netfilter.contents(self.chain, name)

    def device(self, index: int) -> Ranges | None:
        try:
            return exactly(name_number(socket.if_indextoname(index)))
        except OSError:
            return None
