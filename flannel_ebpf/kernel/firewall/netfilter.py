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
from flannel_ebpf.kernel.firewall.parts import Part, SetName


@dataclass(slots=True)
class _Known:
    """What was read so far, and which chains look into which set."""

    bases: list[BaseChain] | None = None
    chains: dict[ChainName, Chain] = field(default_factory=dict)
    sets: dict[SetName, Contents] = field(default_factory=dict)
    users: dict[SetName, set[ChainName]] = field(default_factory=dict)


class Netfilter:
    """The rules for one IP version. Of use to one thread, but for `has_read`; methods raise KernelError.

    What was read counts until `forget` names it.
    """

    def __init__(self, version: Version) -> None:
        self._version: Version = version
        self._asking = NftSocket()
        self._known = _Known()
        self._asked: set[Part] = set()
        self._legacy: dict[str, Table] | None = None

    def close(self) -> None:
        """Close the socket."""
        self._asking.close()

    def bases(self) -> list[BaseChain]:
        """Return all base chains that packets of this version meet, in the order of their priorities."""
        known = self._known
        if known.bases is None:
            known.bases = self._asking.base_chains()
            self._asked |= {base.name for base in known.bases}
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
            self._asked.add(name)  # before it is read: whoever hears of a change meanwhile must know it
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
            self._asked.add(one)
            declared = self._asking.set_declared(user.table, name)
            known.sets[one] = (
                contents(declared, self._asking.set_elements(user.table, name)) if declared else UNKNOWN
            )
        return known.sets[one]

    def has_read(self, part: Part) -> bool:
        """Say whether a change of this could change what was read; asked from any thread."""
        return isinstance(part, TableName) or part in self._asked

    def forget(self, parts: Collection[Part]) -> set[ChainName]:
        """Forget what changed; return the chains that must be followed anew."""
        known, gone = self._known, set[ChainName]()
        for part in parts:
            if isinstance(part, SetName):
                known.sets.pop(part, None)
                gone |= known.users.pop(part, set())
            elif isinstance(part, ChainName):
                gone.add(part)
            if isinstance(part, TableName) or (known.bases and part in {base.name for base in known.bases}):
                known.bases = None  # a base chain that is gone tells only its name
        for chain in gone:
            known.chains.pop(chain, None)
        return gone

    def forget_all(self) -> None:
        """Forget everything: who knows what changed."""
        self._known, self._asked, self._legacy = _Known(), set(), None

    @property
    def has_legacy(self) -> bool:
        """Whether the tables of iptables-legacy, of whose changes nobody tells, have been read."""
        return self._legacy is not None

    def legacy_digest(self) -> int:
        """Return a number that changes when a table of iptables-legacy does, 0 without any."""
        digest = 0
        for name in self._legacy_names():
            digest = xtables.digest(name, digest)
        return digest


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
