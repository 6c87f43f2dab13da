"""Flannel's firewall rules as text, exactly as `iptables-save` and `nft list` show them.

Rules and their order are flannel's (pkg/trafficmngr/iptables, pkg/trafficmngr/nftables), quirks included,
so that a flanneld started later finds its own. Each rule here is "<place> <rule>": the place is table and
chain. The chains are flannel's too, and so shared by all networks of a host: a rule is one network's when
it names an address range inside it. Each family has such chains of its own, with the same names.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Network, ip_network
from typing import Literal

from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.desired.firewall_text import iptables_rule, ranges
from flannel_ebpf.desired.objects import Ruleset

Tool = Literal["iptables", "nftables"]
TOOLS: tuple[Tool, ...] = ("iptables", "nftables")

_MARK = 0x4000  # kube-proxy masquerades what carries it, so we must not (flannel PR #1681)
_MULTICAST = {Family.V4: "224.0.0.0/4", Family.V6: "ff00::/8"}

NFT_FAMILIES = {Family.V4: "ip", Family.V6: "ip6"}
"""What nft calls them."""


@dataclass(frozen=True, slots=True)
class NftChain:
    """A base chain of flannel's tables."""

    name: str
    comment: str
    declaration: str


NFT_TABLES = {Family.V4: "flannel-ipv4", Family.V6: "flannel-ipv6"}
NFT_CHAINS = (
    NftChain(
        "postrtg",
        "chain to manage traffic masquerading by flannel",
        "type nat hook postrouting priority srcnat; policy accept;",
    ),
    NftChain(
        "forward",
        "chain to accept flannel traffic",
        "type filter hook forward priority filter; policy accept;",
    ),
)
"""flannel's chains in each table, in the order in which we name their rules."""


@dataclass(frozen=True, slots=True)
class IptablesChain:
    """A chain of flannel's: its table, the built-in chain that jumps to it, and its rules' comment."""

    table: str
    name: str
    parent: str
    comment: str

    @property
    def jump(self) -> str:
        """The rule that leads into the chain."""
        return iptables_rule(self.parent, {"--comment": self.comment, "-j": self.name})


IPTABLES_CHAINS = (
    IptablesChain("nat", "FLANNEL-POSTRTG", "POSTROUTING", "flanneld masq"),
    IptablesChain("filter", "FLANNEL-FWD", "FORWARD", "flanneld forward"),
)


def ruleset(
    tool: Tool,
    network: Network,
    subnet: Network,
    *,
    masquerade: bool,
    forward: bool,
    random_fully: bool,
) -> Ruleset | None:
    """Return the rules of one network, None when neither kind is wanted.

    `random_fully`: give masqueraded connections random source ports (the tool must support it).
    """
    make_masquerade, make_forward = (
        (_iptables_masquerade, _iptables_forward) if tool == "iptables" else (_nft_masquerade, _nft_forward)
    )
    rules: list[str] = []
    if masquerade:
        rules += make_masquerade(network, subnet, random_fully)
    if forward:
        rules += make_forward(network)
    return Ruleset(tool, str(network), tuple(rules)) if rules else None


def _iptables_masquerade(cluster: Network, pods: Network, random_fully: bool) -> list[str]:
    nat, _ = IPTABLES_CHAINS
    network, subnet, multicast = str(cluster), str(pods), _MULTICAST[family_of(cluster)]
    leave = {"--comment": nat.comment, "-j": "RETURN"}
    hide = {"--comment": nat.comment, "-j": "MASQUERADE"} | ({"--random-fully": ""} if random_fully else {})
    rules = (
        leave | {"--mark": f"{_MARK:#x}/{_MARK:#x}"},
        leave | {"-s": subnet, "-d": network},
        leave | {"-s": network, "-d": subnet},
        leave | {"! -s": network, "-d": subnet},
        hide | {"-s": network, "! -d": multicast},
        hide | {"! -s": network, "-d": network},
    )
    return [f"nat {nat.jump}", *(f"nat {iptables_rule(nat.name, rule)}" for rule in rules)]


def _iptables_forward(network: Network) -> list[str]:
    _, fwd = IPTABLES_CHAINS
    accept = {"--comment": fwd.comment, "-j": "ACCEPT"}
    rules = (accept | {"-s": str(network)}, accept | {"-d": str(network)})
    return [f"filter {fwd.jump}", *(f"filter {iptables_rule(fwd.name, rule)}" for rule in rules)]


def _nft_masquerade(network: Network, subnet: Network, random_fully: bool) -> list[str]:
    ip, multicast = NFT_FAMILIES[family_of(network)], _MULTICAST[family_of(network)]
    hide = "masquerade fully-random" if random_fully else "masquerade"
    # The fourth rule shadows the last one; that is flannel's own text and its nodes behave so.
    return [
        f"postrtg {rule}"
        for rule in (
            f"meta mark {_MARK:#010x} return",
            f"{ip} saddr {subnet} {ip} daddr {network} return",
            f"{ip} saddr {network} {ip} daddr {subnet} return",
            f"{ip} saddr != {subnet} {ip} daddr {network} return",
            f"{ip} saddr {network} {ip} daddr != {multicast} {hide}",
            f"{ip} saddr != {network} {ip} daddr {network} {hide}",
        )
    ]


def _nft_forward(network: Network) -> list[str]:
    ip = NFT_FAMILIES[family_of(network)]
    return [f"forward {ip} saddr {network} accept", f"forward {ip} daddr {network} accept"]


def belongs(rule: str, network: Network) -> bool:
    """Say whether a rule of flannel's chains names a range inside `network`."""
    return any(found.subnet_of(network) for found in _ranges(rule) if found.version == network.version)  # type: ignore[arg-type]  # of one family


def is_anothers(rule: str, network: Network) -> bool:
    """Say whether a rule of flannel's chains names ranges, none of them inside `network`."""
    return any(_ranges(rule)) and not belongs(rule, network)


def is_shared(rule: str) -> bool:
    """Say whether a rule is one of flannel's that name no range: they serve every network."""
    return rule in _shared()


@cache
def _shared() -> frozenset[str]:
    """Return the jumps and the marks' rules of either tool."""
    network = IPv4Network("10.1.0.0/16")
    sets = (
        ruleset(tool, network, network, masquerade=True, forward=True, random_fully=False) for tool in TOOLS
    )
    return frozenset(rule for one in sets if one for rule in one.rules if not any(_ranges(rule)))


def owned(rules: Iterable[str], network: Network) -> tuple[str, ...]:
    """Return one network's rules out of all in flannel's chains, in order, shared ones included.

    Rules without a range count in a place only where the network has rules of its own: a jump to a chain that
    serves others only is not ours. A stranger's rule among them counts too, so that it is seen and goes.
    """
    present = [rule for rule in rules if not is_anothers(rule, network)]
    own = {place_of(rule) for rule in present if belongs(rule, network)}
    return tuple(rule for rule in present if place_of(rule) in own)


def merged(present: Iterable[str], network: Network, wanted: Iterable[str]) -> list[str]:
    """Return what flannel's chains should hold: the other networks' rules as they are, and `wanted`.

    In each place the shared rules come first, once, and go when no network is left that needs them.
    """
    present, wanted = list(present), list(wanted)
    others = [rule for rule in present if is_anothers(rule, network)]
    body = [rule for rule in [*others, *wanted] if not is_shared(rule)]
    shared = [rule for rule in dict.fromkeys([*wanted, *present]) if is_shared(rule)]
    result: list[str] = []
    for place in dict.fromkeys(place_of(rule) for rule in [*wanted, *present]):
        own = [rule for rule in body if place_of(rule) == place]
        if own:
            result += [rule for rule in shared if place_of(rule) == place] + own
    return result


def place_of(rule: str) -> str:
    """Return where a rule stands: its table (iptables) or chain (nftables)."""
    return rule.split(" ", 1)[0]


def _ranges(rule: str) -> Iterator[Network]:
    for text in ranges(rule):
        with suppress(ValueError):  # digits and dots in somebody's comment
            yield ip_network(text, strict=False)
