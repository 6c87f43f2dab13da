"""Flannel's rules as text, and whose rule is whose."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

import pytest

from flannel_ebpf.desired.firewall_rules import TOOLS, Tool, belongs, merged, owned, ruleset
from flannel_ebpf.desired.objects import FILTER_MARK, filter_handle

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
OTHER, OTHER_SUBNET = IPv4Network("10.2.0.0/16"), IPv4Network("10.2.5.0/24")


def rules(tool: Tool, network: IPv4Network = NETWORK, subnet: IPv4Network = SUBNET) -> tuple[str, ...]:
    found = ruleset(tool, network, subnet, masquerade=True, forward=True, random_fully=False)
    assert found is not None
    return found.rules


def test_iptables_text_is_flannels() -> None:
    masq = '-m comment --comment "flanneld masq" -j'
    forward = '-m comment --comment "flanneld forward" -j'
    assert rules("iptables") == (
        f"nat -A POSTROUTING {masq} FLANNEL-POSTRTG",
        f"nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 {masq} RETURN",
        f"nat -A FLANNEL-POSTRTG -s 10.1.5.0/24 -d 10.1.0.0/16 {masq} RETURN",
        f"nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 -d 10.1.5.0/24 {masq} RETURN",
        f"nat -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.5.0/24 {masq} RETURN",
        f"nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 {masq} MASQUERADE",
        f"nat -A FLANNEL-POSTRTG ! -s 10.1.0.0/16 -d 10.1.0.0/16 {masq} MASQUERADE",
        f"filter -A FORWARD {forward} FLANNEL-FWD",
        f"filter -A FLANNEL-FWD -s 10.1.0.0/16 {forward} ACCEPT",
        f"filter -A FLANNEL-FWD -d 10.1.0.0/16 {forward} ACCEPT",
    )


def test_ipv6_has_the_same_rules_with_its_own_multicast() -> None:
    network, subnet = IPv6Network("fc00::/48"), IPv6Network("fc00:0:0:5::/64")
    for tool in TOOLS:
        found = ruleset(tool, network, subnet, masquerade=True, forward=True, random_fully=False)
        assert found
        changed = [
            rule.replace("10.1.5.0/24", str(subnet)).replace("10.1.0.0/16", str(network))
            for rule in rules(tool)
        ]
        changed = [rule.replace("224.0.0.0/4", "ff00::/8").replace(" ip ", " ip6 ") for rule in changed]
        assert list(found.rules) == changed
        assert owned(found.rules, network) == found.rules


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(("masquerade", "forward"), [(True, False), (False, True), (False, False)])
def test_each_part_can_be_left_out(tool: Tool, masquerade: bool, forward: bool) -> None:
    found = ruleset(tool, NETWORK, SUBNET, masquerade=masquerade, forward=forward, random_fully=True)
    text = " ".join(found.rules) if found else ""
    assert ("224.0.0.0/4" in text) == masquerade
    assert ("accept" in text.lower()) == forward
    assert ("random" in text) == masquerade


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("nat -A FLANNEL-POSTRTG -s 10.1.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE", True),
        ("nat -A FLANNEL-POSTRTG -s 10.1.7.0/24 -d 10.9.0.0/16 -j RETURN", True),
        ("nat -A FLANNEL-POSTRTG -s 10.2.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE", False),
        ("nat -A FLANNEL-POSTRTG -m mark --mark 0x4000/0x4000 -j RETURN", False),
        ("forward ip saddr 10.1.0.9 accept", True),
        ("forward ip saddr 10.0.0.0/8 accept", False),
        ("forward ip saddr 999.1.1.1 accept", False),
        ("forward ip saddr @blocked drop", False),
    ],
)
def test_whose_rule(rule: str, expected: bool) -> None:
    assert belongs(rule, NETWORK) is expected


@pytest.mark.parametrize("tool", TOOLS)
def test_networks_come_and_go_without_each_other(tool: Tool) -> None:
    ours, theirs = rules(tool), rules(tool, OTHER, OTHER_SUBNET)
    both = merged(merged([], NETWORK, ours), OTHER, theirs)
    assert owned(both, NETWORK) == ours
    assert owned(both, OTHER) == theirs
    assert len(both) == len(set(both))
    assert owned(merged(both, NETWORK, ours), NETWORK) == ours
    assert tuple(merged(both, NETWORK, ())) == theirs
    assert merged(merged(both, NETWORK, ()), OTHER, ()) == []


def test_filter_handles_carry_the_mark_and_tell_networks_apart() -> None:
    handles = {filter_handle(IPv4Network((n << 16, 16))) for n in range(256)}
    assert len(handles) == 256
    assert {handle & 0xFF000000 for handle in handles} == {FILTER_MARK}


@pytest.mark.parametrize(
    "stranger", ["nat -A FLANNEL-POSTRTG -j RETURN", "nat -A FLANNEL-POSTRTG -p tcp -j ACCEPT"]
)
def test_a_strangers_rule_without_a_range_is_seen_and_goes(stranger: str) -> None:
    network, subnet = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.5.0/24")
    right = ruleset("iptables", network, subnet, masquerade=True, forward=True, random_fully=False)
    assert right
    for present in ([stranger, *right.rules], [*right.rules, stranger]):
        assert owned(present, network) != right.rules
        assert tuple(merged(present, network, right.rules)) == right.rules
