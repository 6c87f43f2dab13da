"""One text per meaning, however a tool spells a rule."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from typing import Any

import pytest

from flannel_ebpf.desired.firewall_rules import belongs, is_anothers, ruleset
from flannel_ebpf.desired.firewall_text import iptables_meaning, nft_meaning

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
MASQ = '-m comment --comment "flanneld masq"'


@pytest.mark.parametrize(
    ("line", "meaning"),
    [
        (
            f"-A C {MASQ} -m mark --mark 0x4000/0x4000 -j RETURN",
            f"-A C -m mark --mark 0x4000/0x4000 {MASQ} -j RETURN",
        ),
        ("-A C -m mark --mark 0x4000 -j RETURN", "-A C -m mark --mark 0x4000/0xffffffff -j RETURN"),
        (
            "-A C --destination 10.1.0.0/255.255.0.0 ! --source 10.1.5.0/24 -j ACCEPT",
            "-A C ! -s 10.1.5.0/24 -d 10.1.0.0/16 -j ACCEPT",
        ),
        ("-A C -s 10.1.5.7 -j ACCEPT", "-A C -s 10.1.5.7/32 -j ACCEPT"),
        ("-A C -m comment --comment forward -j ACCEPT", '-A C -m comment --comment "forward" -j ACCEPT'),
    ],
)
def test_one_text_for_each_meaning_of_iptables(line: str, meaning: str) -> None:
    assert iptables_meaning(line) == meaning
    assert iptables_meaning(meaning) == meaning


@pytest.mark.parametrize(
    "line",
    [
        "-A C -p tcp -j ACCEPT",
        "-A C -s 10.1.0.0/16 -p tcp -m tcp --dport 80 -j ACCEPT",
        '-A C -m comment --comment "open',
        "-A C -s 10.1.0.0/16",
        "-A C -m mark --mark much -j RETURN",
        "-A C -s 10.1.0.0/16 -s 10.2.0.0/16 -j ACCEPT",
        "-P INPUT ACCEPT",
        "",
    ],
)
def test_what_flannels_rules_do_not_hold_is_its_own_text(line: str) -> None:
    assert iptables_meaning(line) == line


@pytest.mark.parametrize("random", [True, False])
def test_our_own_rules_are_in_that_form(random: bool) -> None:
    found = ruleset("iptables", NETWORK, SUBNET, masquerade=True, forward=True, random_fully=random)
    assert found
    rules = [rule.split(" ", 1)[1] for rule in found.rules]
    assert [iptables_meaning(rule) for rule in rules] == rules


SADDR: dict[str, Any] = {"payload": {"protocol": "ip", "field": "saddr"}}
OURS: dict[str, Any] = {"prefix": {"addr": "10.1.0.0", "len": 16}}
PORT: dict[str, Any] = {
    "match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}
}


@pytest.mark.parametrize(
    ("statements", "meaning"),
    [
        (
            [{"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 16384}}, {"return": None}],
            "meta mark 0x00004000 return",
        ),
        (
            [{"match": {"op": "!=", "left": SADDR, "right": OURS}}, {"accept": None}],
            "ip saddr != 10.1.0.0/16 accept",
        ),
        (
            [
                {"match": {"op": "==", "left": SADDR, "right": "10.1.5.7"}},
                {"counter": {"packets": 3, "bytes": 180}},
                {"masquerade": {"flags": "fully-random"}},
            ],
            "ip saddr 10.1.5.7 masquerade fully-random",
        ),
        ([{"masquerade": {"flags": ["fully-random"]}}], "masquerade fully-random"),
        (
            [
                {
                    "match": {
                        "op": "==",
                        "left": {"payload": {"protocol": "ip6", "field": "daddr"}},
                        "right": {"prefix": {"addr": "fc00::", "len": 16}},
                    }
                },
                {"masquerade": None},
            ],
            "ip6 daddr fc00::/16 masquerade",
        ),
        ([PORT, {"drop": None}], f'{json.dumps(PORT, sort_keys=True)} {{"drop": null}}'),
    ],
)
def test_statements_of_nft_in_its_own_words(statements: list[Any], meaning: str) -> None:
    assert nft_meaning(statements) == meaning


def test_whose_rule_is_told_of_unknown_statements_too() -> None:
    rule = "forward " + nft_meaning(
        [{"match": {"op": "in", "left": SADDR, "right": {"set": [OURS]}}}, {"drop": None}]
    )
    assert belongs(rule, NETWORK)
    assert is_anothers(rule, IPv4Network("10.2.0.0/16"))
