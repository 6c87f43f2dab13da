"""Rules as the real tools write them, read back from the kernel and put into words."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.desired.proof.rules import BaseChain, ChainName, Hook, TableName
from flannel_ebpf.desired.proof.words import rule_text
from flannel_ebpf.kernel.firewall.netfilter import Netfilter
from tests.namespaces import inside, new_namespace

LINES = [
    [part.strip() for part in line.partition("=>")[::2]]
    for line in (Path(__file__).parent / "decoded.txt").read_text().splitlines()
    if not line.startswith("#")
]
OF_NFT = [(rule[len("inet ") :], words) for rule, words in LINES if rule.startswith("inet ")]
OF_IPTABLES = [(rule[len("iptables ") :], words) for rule, words in LINES if rule.startswith("iptables ")]

NFT = """
flush ruleset
table inet words {
    set plain { type ipv4_addr; flags interval; elements = { 10.1.45.2-10.1.45.4, 10.1.45.9 }; }
    set moving { type ipv4_addr; flags dynamic; size 99; }
    set leaving { type ipv4_addr; flags timeout; elements = { 10.1.45.7 timeout 1h }; }
    set counting { type ipv4_addr; quota over 1 mbytes; elements = { 10.1.45.7 }; }
    map verdicts { type ipv4_addr : verdict; elements = { 10.1.45.2 : drop, 10.1.45.3 : jump user }; }
    counter hits { packets 0 bytes 0; }
    quota most { over 1 mbytes; }
    chain user { }
    chain base { type KIND hook HOOK priority PRIORITY; RULE; }
}
"""


@pytest.fixture(scope="module")
def node() -> Iterator[None]:
    with inside(new_namespace()):
        tool("ip", "link", "add", "cni0", "type", "bridge")
        tool("ipset", "create", "pods", "hash:ip")
        yield


def tool(*command: str, text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stderr}\n{text}"


def read() -> dict[BaseChain, list[str]]:
    """Return each base chain with its rules in words."""
    netfilter = Netfilter(4)
    try:
        return {
            base: [rule_text(rule) for rule in netfilter.chain(base.name).rules] for base in netfilter.bases()
        }
    finally:
        netfilter.close()


@pytest.mark.parametrize(("rule", "words"), OF_NFT)
def test_a_rule_of_nft(node: None, rule: str, words: str) -> None:
    place, _, text = rule.partition(": ")
    kind, _, hook = place.partition("-")
    chain = {"KIND": kind, "HOOK": hook or "prerouting", "PRIORITY": "0" if hook else "-300", "RULE": text}
    ruleset = NFT
    for name, value in chain.items():
        ruleset = ruleset.replace(name, value)
    tool("nft", "-f", "-", text=ruleset)
    assert list(read().values()) == [[words] if words else []]


@pytest.mark.parametrize("kind", ["nft", "legacy"])
@pytest.mark.parametrize(("rule", "words"), OF_IPTABLES)
def test_a_rule_of_iptables(node: None, kind: str, rule: str, words: str) -> None:
    place, _, text = rule.partition(": ")
    table, chain = place.split()
    tool("nft", "flush", "ruleset")
    try:
        tool(f"iptables-{kind}-restore", text=f"*{table}\n:{chain} ACCEPT\n-A {chain} {text}\nCOMMIT\n")
        name = ChainName(TableName("legacy" if kind == "legacy" else "ip", table), chain)
        [found] = [rules for base, rules in read().items() if base.name == name]
    finally:
        tool("iptables-legacy-restore", text=f"*{table}\nCOMMIT\n")
    assert found == ([words] if words else [])


def test_chains_policies_and_devices(node: None) -> None:
    text = """
        table netdev n {
            chain c { type filter hook ingress devices = { cni0, lo } priority 5; policy drop; }
        }
        table bridge b { chain c { type filter hook postrouting priority -1; }; }
        table inet i { chain c { type filter hook forward priority 10; policy drop; }; }
        table inet asleep { flags dormant; chain c { type filter hook forward priority 0; }; }
        table ip6 six { chain c { type filter hook forward priority 0; drop; }; }
        table arp a { chain c { type filter hook input priority 0; }; }
    """
    tool("nft", "-f", "-", text="flush ruleset\n" + text)
    bases = [base for base in read() if base.name.table.kind != "legacy"]
    found = {base.name.table.name: base for base in bases}
    assert {name: (base.hook, base.drops) for name, base in found.items()} == {
        "n": (Hook.INGRESS, True),
        "b": (Hook.BRIDGE_POSTROUTING, False),
        "i": (Hook.FORWARD, True),
    }
    assert [base.priority for base in bases] == [-1, 5, 10]
    assert len(found["n"].devices or ()) == 2


def test_legacy_chains_and_jumps(node: None) -> None:
    tool("nft", "flush", "ruleset")
    text = """*filter
:FORWARD DROP
:USER -
-A FORWARD -j USER
-A FORWARD -g USER
-A FORWARD
-A FORWARD -f -j DROP
-A USER -s 10.1.45.7 -m comment --comment "who it is" -j DROP
-A USER -j RETURN
COMMIT
"""
    tool("iptables-legacy-restore", text=text)
    netfilter = Netfilter(4)
    try:
        [forward] = [base for base in netfilter.bases() if base.name.name == "FORWARD" and base.drops]
        words = [rule_text(rule) for rule in netfilter.chain(forward.name).rules]
        assert words == ["jump USER", "goto USER", "fragment { 1-16383, 16385-65535 } drop"]
        user = netfilter.chain(ChainName(forward.name.table, "USER"))
        assert [(rule.handle, rule.comment) for rule in user.rules] == [(1, "who it is"), (2, "")]
    finally:
        netfilter.close()
        tool("iptables-legacy-restore", text="*filter\n:FORWARD ACCEPT\nCOMMIT\n")
