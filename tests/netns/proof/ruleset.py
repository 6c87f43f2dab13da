"""A random ruleset in the kernel: what of it the tools took, and what its shadows have counted."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random

from tests.netns.proof import random_nft, random_xt
from tests.netns.proof.ground import PODS, Ground
from tests.netns.proof.random_tests import Counting

KINDS = ("nft", "iptables", "legacy")
_TRIES = 60
_SHADOW = re.compile(r'comment "?(S\d+)\b')
_PARSER_ERROR = re.compile(r"^[^:\s]+:(\d+):\d+-\d+: Error: (?!Could not process)", re.MULTILINE)
_KERNEL_ERROR = re.compile(r"^[^:\s]+:(\d+):\d+-\d+: Error: Could not process", re.MULTILINE)
_XT_ERROR = re.compile(r"line:? (\d+)", re.IGNORECASE)
_NFT_COUNT = re.compile(r'counter packets (\d+) bytes \d+ .*comment "(S\d+)"')
_XT_COUNT = re.compile(r"^\[(\d+):\d+\] .*--comment (S\d+)$", re.MULTILINE)


@dataclass
class Loaded:
    """Rules as they were loaded: text by kind. `bridge_calls`: bridged packets meet iptables, too."""

    texts: dict[str, str] = field(default_factory=dict)
    bridge_calls: bool = False

    def __str__(self) -> str:
        calls = f"# bridge-nf-call-iptables={self.bridge_calls:d}\n"
        return calls + "\n".join(f"# {kind}\n{text}" for kind, text in self.texts.items())


def load(ground: Ground, random: Random) -> Loaded:
    """Put a random ruleset into the node."""
    clear(ground)
    counting = Counting.some(random)
    kinds = random.choice(
        [["nft"], ["nft"], ["iptables"], ["legacy"], ["nft", "iptables"], ["nft", "legacy"]]
    )
    loaded = Loaded(bridge_calls=random.random() < 0.3)
    ground.run("sysctl", "-qw", f"net.bridge.bridge-nf-call-iptables={loaded.bridge_calls:d}")
    for kind in kinds:
        maker = random_nft.ruleset if kind == "nft" else random_xt.ruleset
        loaded.texts[kind] = put(ground, kind, maker(random, counting))
    return loaded


def put(ground: Ground, kind: str, text: str) -> str:
    """Load rules with their tool, without those that it or the kernel refuses; return what was loaded."""
    command = {
        "nft": ("nft", "-f", "-"),
        "iptables": ("iptables-nft-restore", "--noflush"),
        "legacy": ("iptables-legacy-restore", "--noflush"),
    }[kind]
    lines = text.splitlines()
    for _ in range(_TRIES):
        done = ground.run(*command, text="\n".join(lines) + "\n")
        if done.returncode == 0:
            return "\n".join(lines)
        lines = _without(lines, _refused(kind, done.stderr))
    raise AssertionError(f"{kind} takes nothing: {done.stderr}\n" + "\n".join(lines))


def _refused(kind: str, said: str) -> set[int]:
    """Return the lines that a tool complains of, from 0; of those of the kernel the first: others follow
    from it."""
    found = (
        [*_PARSER_ERROR.findall(said), *_KERNEL_ERROR.findall(said)[:1]]
        if kind == "nft"
        else _XT_ERROR.findall(said)
    )
    assert found, f"{kind}: {said}"
    return {int(number) - 1 for number in found}


def _without(lines: list[str], refused: set[int]) -> list[str]:
    """Leave out lines; a shadow goes with its rule, a rule with its shadow, and a COMMIT stands for what is
    before."""
    gone = set(refused)
    for number in refused:
        if lines[number] == "COMMIT":
            gone.discard(number)
            gone.add(number - 1)
    for number in list(gone):
        if number and _SHADOW.search(lines[number - 1]):
            gone.add(number - 1)
        if _SHADOW.search(lines[number]) and number + 1 < len(lines):
            gone.add(number + 1)
    return [line for number, line in enumerate(lines) if number not in gone]


def clear(ground: Ground) -> None:
    """Take every rule and set out of the node, and what conntrack knows."""
    ground.run("nft", "flush", "ruleset")
    empty = "".join(
        f"*{table}\n" + "".join(f":{chain} ACCEPT\n" for chain in dict.fromkeys(chains)) + "COMMIT\n"
        for table, chains in random_xt.CHAINS.items()
    )
    ground.run("iptables-legacy-restore", text=empty)
    ground.run("conntrack", "-F")
    sets = ["create pods hash:ip counters", f"add pods {PODS[0]}", f"add pods {PODS[1]}"]
    sets += ["create empty hash:ip", "create written hash:ip"]
    ground.run("ipset", "destroy")
    ground.run("ipset", "restore", text="\n".join(sets) + "\n")


def counted(ground: Ground, loaded: Loaded) -> dict[str, int]:
    """Return what each shadow has counted."""
    found: dict[str, int] = {}
    if "nft" in loaded.texts:
        found |= {tag: int(n) for n, tag in _NFT_COUNT.findall(ground.run("nft", "list", "ruleset").stdout)}
    for kind, tool in (("iptables", "iptables-nft-save"), ("legacy", "iptables-legacy-save")):
        if kind in loaded.texts:
            found |= {tag: int(n) for n, tag in _XT_COUNT.findall(ground.run(tool, "-c").stdout)}
    return found
