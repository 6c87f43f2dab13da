"""Which rules a node wants, and how often it looks at what stands: reading them runs programs."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, ip_network
from typing import Any, cast

import pytest

from flannel_ebpf.agent import firewall_side
from flannel_ebpf.agent.firewall_side import FirewallSide
from flannel_ebpf.agent.side import Round
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import Mac, Uplink
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.desired.firewall_rules import Tool
from flannel_ebpf.desired.objects import Object, Ruleset
from flannel_ebpf.desired.plan import Failure, Op, Put
from tests.samples import stack

NETWORK = ip_network("10.1.0.0/16")
CONFIG = parse_network_config('{"Network":"10.1.0.0/16"}', "test")
UPLINK = Uplink(2, "eth0", IPv4Address("192.168.64.7"), 24, 1500, Mac(bytes(6)))
NOW = Round(Node((stack(CONFIG, UPLINK, "10.1.7.0/24"),)), (), (), cast(Any, None))
STANDING = Ruleset("iptables", str(NETWORK), ("filter -A FORWARD",))


class Rules:
    """The kernel's rules; `reads` counts how often they were asked for."""

    def __init__(self) -> None:
        self.reads = 0
        self.applied: list[Op] = []

    def read(self, network: object) -> set[Object]:
        assert network == NETWORK
        self.reads += 1
        return {STANDING}

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        self.applied += ops
        return []


class Host:
    """What a firewall side meets here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rules, self.now = Rules(), 1000.0
        self.legacy, self.can_randomize, self.asked, self.woken = False, True, 0, 0
        monkeypatch.setattr(firewall_side, "Rules", lambda: self.rules)
        monkeypatch.setattr(firewall_side, "is_legacy", lambda: self.legacy)
        monkeypatch.setattr(firewall_side, "supports_random_fully", self._supports)
        monkeypatch.setattr(firewall_side.time, "monotonic", lambda: self.now)

    def _supports(self, _tool: Tool) -> bool:
        self.asked += 1
        return self.can_randomize

    def side(self, tool: Tool = "iptables", **options: Any) -> FirewallSide:
        return FirewallSide(Options(**options), tool, self._wake)

    def _wake(self) -> None:
        self.woken += 1


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def rules(side: FirewallSide) -> str:
    """Return the text of the wanted rules."""
    return "\n".join(rule for one in side.wanted(NOW) if isinstance(one, Ruleset) for rule in one.rules)


@pytest.mark.parametrize("tool", ["iptables", "nftables"])
def test_masquerade_and_forward_rules_are_there_as_asked_for(host: Host, tool: Tool) -> None:
    both = rules(host.side(tool, ip_masq=True, iptables_forward_rules=True)).lower()
    masquerade = rules(host.side(tool, ip_masq=True, iptables_forward_rules=False)).lower()
    forward = rules(host.side(tool, ip_masq=False, iptables_forward_rules=True)).lower()
    assert "masquerade" in both
    assert "10.1.7.0/24" in both
    assert "masquerade" not in forward
    assert forward
    assert set(both.splitlines()) == set(masquerade.splitlines()) | set(forward.splitlines())
    assert host.side(tool, ip_masq=False, iptables_forward_rules=False).wanted(NOW) == []


def test_the_tool_of_the_rules_is_the_one_that_was_chosen(host: Host) -> None:
    for tool in ("iptables", "nftables"):
        [wanted] = host.side(cast(Tool, tool), ip_masq=True).wanted(NOW)
        assert isinstance(wanted, Ruleset)
        assert (wanted.backend, wanted.name) == (tool, str(NETWORK))


def test_ports_are_drawn_where_the_tool_can_and_nobody_forbids_it(host: Host) -> None:
    side = host.side(ip_masq=True)
    assert "--random-fully" in rules(side)
    rules(side)
    assert host.asked == 1, "the tool is asked once"
    assert "--random-fully" not in rules(host.side(ip_masq=True, ip_masq_fully_random_disable=True))
    assert host.asked == 1, "and not at all where the answer does not matter"
    host.can_randomize = False
    assert "--random-fully" not in rules(host.side(ip_masq=True))


def test_without_masquerading_no_tool_is_asked(host: Host) -> None:
    rules(host.side(ip_masq=False))
    assert host.asked == 0


def test_rules_are_read_again_after_a_change_a_write_or_a_minute(host: Host) -> None:
    side = host.side(ip_masq=True)
    assert side.read(NOW, ()) == {STANDING}
    host.now += 59
    assert side.read(NOW, ()) == {STANDING}
    assert host.rules.reads == 1
    host.now += 1
    side.read(NOW, ())
    assert host.rules.reads == 2
    side.changed()
    assert host.woken == 1
    side.read(NOW, ())
    side.read(NOW, ())
    assert host.rules.reads == 3
    op = Put(STANDING)
    assert side.apply([op], cast(Any, None)) == []
    assert host.rules.applied == [op]
    assert host.woken == 1, "our own write is no reason for another pass"
    side.read(NOW, ())
    assert host.rules.reads == 4


def test_changes_of_iptables_legacy_which_nobody_hears_of_are_looked_for_as_often_as_asked(
    host: Host,
) -> None:
    host.legacy = True
    side = host.side(ip_masq=True, iptables_resync=5)
    assert side.lifetime == 5
    side.read(NOW, ())
    host.now += 5
    side.read(NOW, ())
    assert host.rules.reads == 2
    host.legacy = False
    assert host.side(iptables_resync=5).lifetime == firewall_side.LONGEST
