"""What the proof claims of random rulesets against what the kernel does with packets."""

from __future__ import annotations

import sys
from collections import Counter
from random import Random

import pytest

from flannel_ebpf.desired.proof.proof import Proof
from flannel_ebpf.desired.proof.ranges import exactly
from tests.netns.proof.ground import PODS, ground
from tests.netns.proof.judge import judge
from tests.netns.proof.ruleset import load
from tests.netns.proof.wire import Speaker


@pytest.mark.fuzz
def test_no_ruleset_has_a_counter_example(fuzz_rulesets: int) -> None:
    # A few are others each time, of those that `make fuzz` takes all of.
    seeds = Random().sample(range(max(fuzz_rulesets, 2000)), fuzz_rulesets)
    assert check(sorted(seeds)) == []


def test_a_false_claim_is_found_out() -> None:
    # Of pods that the proof guards, most cannot be free: then the kernel must show it.
    found = Counter[bool]()
    with ground() as node:
        speaker = Speaker()
        for seed in range(12):
            rules = load(node, Random(seed))
            verdict = judge(node, rules, speaker)
            for pod in PODS:
                if pod not in verdict.free:
                    claim = Proof(exactly(int(pod)))
                    found[bool(judge(node, rules, speaker, claim, patience=0.05).wrong)] += 1
    assert found[True] > found[False]


def check(seeds: list[int]) -> list[str]:
    """Return the counter-examples, each with its ruleset; say how many pods were claimed to be what."""
    wrong = []
    claims = Counter[str]()
    with ground() as node:
        speaker = Speaker()
        for seed in seeds:
            rules = load(node, Random(seed))
            verdict = judge(node, rules, speaker)
            claims["free"] += len(verdict.free)
            claims["by flow"] += len(verdict.by_flow) - len(verdict.free)
            claims["kernel"] += len(PODS) - len(verdict.by_flow)
            if verdict.wrong:
                wrong.append(f"ruleset {seed}:\n{rules}\n" + "\n".join(verdict.wrong[:5]))
    sys.stdout.write(f"{len(seeds)} rulesets, pods: {dict(claims)}\n")
    return wrong
