"""How pods are carried beside each kind of rule: none is escaped for longer than a flow is trusted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.desired.proof.proof import Level
from tests.netns.proof.ground import PODS, Ground, ground
from tests.netns.proof.judge import is_in, prove_here
from tests.netns.proof.ruleset import clear

LINES = [
    tuple(part.strip() for part in line.split("=>"))
    for line in (Path(__file__).parent / "levels.txt").read_text().splitlines()
    if not line.startswith("#")
]
POD = PODS[1]


@pytest.fixture(scope="module")
def node() -> Iterator[Ground]:
    with ground() as made:
        assert made.run("ipset", "create", "seen", "hash:ip").returncode == 0
        yield made


@pytest.mark.parametrize(("rule", "level"), LINES)
def test_level_beside_a_rule(node: Ground, rule: str, level: str) -> None:
    clear(node)
    place, _, text = rule.partition(": ")
    tool, *where = place.split()
    if tool == "nft":
        done = node.run("nft", "-f", "-", text=in_nft(*where, text))
    else:
        table, chain = where
        rules = f"*{table}\n:{chain} ACCEPT\n-A {chain} -d {POD} {text}\nCOMMIT\n"
        node.run("ipset", "create", "seen", "hash:ip")
        done = node.run("iptables-nft-restore", text=rules)
    assert done.returncode == 0, done.stderr
    proof = prove_here(node)
    assert level_of(proof.free, proof.of_level(Level.KERNEL)) == level


def in_nft(family: str, hook: str, text: str) -> str:
    device = "device veth1" if hook == "ingress" else ""
    way = "saddr" if hook in {"ingress", "prerouting"} else "daddr"
    rules = "; ".join(f"ip {way} {POD} {one}" for one in text.split("; "))
    chain = f"chain c {{ type filter hook {hook} {device} priority 0; {rules}; }}"
    return f"table {family} t {{ set seen {{ type ipv4_addr; flags dynamic; size 99; }}; {chain}; }}"


def level_of(free: tuple[tuple[int, int], ...], kernel: tuple[tuple[int, int], ...]) -> str:
    return "free" if is_in(free, POD) else "kernel" if is_in(kernel, POD) else "flows"
