"""Rulesets that real programs wrote: whom they guard and why, and that nothing speaks against it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_ebpf.desired.firewall_rules import ruleset
from flannel_ebpf.desired.plan import Put
from flannel_ebpf.desired.proof.passages import Facts
from flannel_ebpf.desired.proof.proof import Proof, prove
from flannel_ebpf.desired.proof.words import addresses_text
from flannel_ebpf.kernel.firewall.netfilter import Netfilter
from flannel_ebpf.kernel.firewall.nfnetlink import NETLINK_NETFILTER
from flannel_ebpf.kernel.firewall.rules import Rules
from flannel_ebpf.kernel.netlink.route_socket import (
    NLM_F_ACK,
    NLM_F_CREATE,
    Request,
    RouteSocket,
    attribute,
)
from tests.namespaces import inside
from tests.netns.proof.ground import NETWORK, SUBNET, Ground, ground
from tests.netns.proof.judge import judge
from tests.netns.proof.ruleset import Loaded
from tests.netns.proof.wire import Speaker

FOLDER = Path(__file__).parent / "real"
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in {".iptables", ".nft"})
_HANDLE = re.compile(r" rule \d+:")
_ONE_OF_MANY = re.compile(r"(?<=kube-proxy endpoint-).*?(?=: nat into the overlay)|(?<=the overlay).*")
"""Which endpoint is found first is the hash's choice."""
_ACCOUNTS = ("ct_state_invalid_dropped_pkts", "localhost_nps_accepted_pkts")
_IPSETS = ("KUBE-SRC-CLIENTS", "KUBE-DST-WEB", "cali40s-clients")


@pytest.fixture(params=FILES)
def node(request: pytest.FixtureRequest) -> Iterator[tuple[str, Ground]]:
    """A node with the rules of a file, and flannel's."""
    name: str = request.param
    with ground("docker0" if name.startswith("docker") and "bridge" in name else "cni0") as made:
        for ipset in _IPSETS:
            assert made.run("ipset", "create", ipset, "hash:ip").returncode == 0
        with inside(made.node):
            make_accounts()
        tool = ("nft", "-f", "-") if name.endswith(".nft") else ("iptables-nft-restore",)
        done = made.run(*tool, text=(FOLDER / name).read_text())
        assert done.returncode == 0, done.stderr
        ours = ruleset("iptables", NETWORK, SUBNET, masquerade=True, forward=True, random_fully=True)
        assert ours
        with inside(made.node):
            assert Rules().apply([Put(ours)]) == []
        yield name, made


def make_accounts() -> None:
    """Make kube-proxy's nfacct objects (linux/netfilter/nfnetlink_acct.h: NFNL_MSG_ACCT_NEW)."""
    with RouteSocket(protocol=NETLINK_NETFILTER) as asking:
        for name in _ACCOUNTS:
            body = bytes(4) + attribute(1, name.encode() + b"\0")
            [answer] = asking.exchange([Request(7 << 8, NLM_F_ACK | NLM_F_CREATE, body)])
            assert answer.code == 0, answer.text


def facts(name: str, node: Ground) -> Facts:
    """Canal has a device for each pod instead of a bridge."""
    found = node.facts()
    if name.startswith("canal"):
        veths = frozenset(["cali1web", "cali2free"])
        found = replace(found, gateways=veths, ports=veths)
    return found


def proved(name: str, node: Ground) -> Proof:
    with inside(node.node):
        netfilter = Netfilter(4)
        try:
            return prove(netfilter.bases(), netfilter.chain, facts(name, node))
        finally:
            netfilter.close()


def in_words(proof: Proof) -> list[str]:
    found = [f"free: {addresses_text(proof.free)}"] if proof.free else []
    for guard in proof.guards:
        why = _HANDLE.sub(":", guard.why)
        why = _ONE_OF_MANY.sub("*", why) if "kube-proxy endpoint-" in why else why
        found.append(f"{guard.level.name.lower()}: {addresses_text(guard.addresses)}: {why}")
    return found


def expected() -> dict[str, list[str]]:
    sections = (FOLDER / "guards.txt").read_text().strip().split("\n\n")
    return {lines[0]: [line.strip() for line in lines[1:]] for lines in (s.splitlines() for s in sections)}


def test_guards_and_their_rules(node: tuple[str, Ground]) -> None:
    name, made = node
    proof = proved(name, made)
    assert in_words(proof) == expected()[name]
    if not name.startswith("canal"):
        assert judge(made, Loaded(), Speaker(), proof).wrong == []
