"""A node's uplink is chosen once and followed: what happens to addresses and devices, where it is then."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface
from types import SimpleNamespace
from typing import Any, cast

import pytest

from flannel_ebpf.agent import identity
from flannel_ebpf.agent.identity import GRACE, Identity
from flannel_ebpf.base import family
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.model import Mac, Uplink
from flannel_ebpf.base.options import Options
from flannel_ebpf.kernel.netlink.links import Address, Link
from flannel_ebpf.kernel.uplink import follow
from tests.samples import stack

MAC = bytes(range(6))
BR0 = Uplink(3, "br0", IPv4Address("192.168.64.5"), 24, 1500, Mac(MAC))
HOME = Uplink(2, "eth0", IPv4Address("192.168.64.5"), 24, 1500, Mac(MAC))
CONFIG = parse_network_config('{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}', "test")


def links(*names: str, **changes: dict[str, Any]) -> dict[int, Link]:
    """lo, then these from index 2 on; `changes` of one by its name."""
    every = {}
    for index, name in enumerate(("lo", *names), 1):
        link = Link(index, name, "", True, 1500, MAC, 0, b"", 0, False)
        every[index] = replace(link, **changes.get(name, {}))
    return every


def addresses(*places: tuple[int, str]) -> list[Address]:
    return [Address(index, IPv4Interface(text), 0, 0x80) for index, text in places]


@pytest.mark.parametrize(
    ("there", "stand", "expected"),
    [
        (links("eth0"), [(2, "192.168.64.5/24")], HOME),
        (links("eth0"), [(2, "192.168.64.100/32"), (2, "192.168.64.5/24")], HOME),  # a VIP that comes first
        (links("eth0", "wg0"), [(3, "10.9.0.7/24"), (2, "192.168.64.5/24")], HOME),
        (links("eth0", "lo2"), [(3, "192.168.64.5/32"), (2, "192.168.64.5/24")], HOME),  # twice on the host
        (links("eth0", eth0={"mtu": 9000, "mac": bytes(6)}), [(2, "192.168.64.5/16")],
         replace(HOME, mtu=9000, mac=Mac(bytes(6)), prefix_len=16)),
        (links("lan0"), [(2, "192.168.64.5/24")], replace(HOME, name="lan0")),
        (links("eth1", "eth0"), [(3, "192.168.64.5/24")], replace(HOME, ifindex=3)),
        (links("eth0", "br0", eth0={"master": 3}), [(3, "192.168.64.5/24")], BR0),
        (links("eth0", "br0"), [(3, "192.168.64.5/24")], BR0),
        (links("eth0"), [(1, "192.168.64.5/32")], None),
        (links("eth0"), [(2, "192.168.64.6/24")], None),
        (links("eth0"), [], None),
        ({}, [(2, "192.168.64.5/24")], None),  # an address of a device that was not dumped
    ],
)  # fmt: skip
def test_where_the_uplink_is_now(
    there: dict[int, Link], stand: list[tuple[int, str]], expected: Uplink | None
) -> None:
    assert follow(HOME, there, addresses(*stand)) == expected


def test_a_nic_made_anew_is_the_uplink_still() -> None:
    there = {1: links()[1], 7: replace(links("eth0")[2], index=7)}
    assert follow(HOME, there, addresses((7, "192.168.64.5/24"))) == replace(HOME, ifindex=7)


def test_a_routes_source_stays_with_its_interface() -> None:
    source = replace(HOME, ip=IPv4Address("10.255.0.1"), prefix_len=32)
    stand = addresses((2, "192.168.64.5/24"), (1, "10.255.0.1/32"))
    assert follow(source, links("eth0"), stand) == source
    assert follow(source, links("eth0"), stand[:1]) is None


class Host:
    """What the kernel shows, and what the options would choose."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.links, self.addresses = links("eth0", "eth1"), addresses((2, "192.168.64.5/24"))
        self.choice: Uplink | None = None
        self.identity = Identity(Options(**options))
        self.stack = stack(CONFIG, HOME, "10.1.5.0/24")
        monkeypatch.setattr(identity, "choose_uplinks", self._choose)

    def _choose(self, *_: object) -> list[tuple[Uplink, family.Address]]:
        if self.choice is None:
            raise ConfigError("default route", "none", "one")
        return [(self.choice, self.choice.ip)]

    def at(self, now: float) -> tuple[str, str]:
        """Return where the node is at that time."""
        seen = cast(Any, SimpleNamespace(links=self.links, addresses=lambda _: self.addresses))
        uplink, public_ip = self.identity.follow(self.stack, seen, now)
        return uplink.name, str(public_ip)


ETH0, ETH1 = ("eth0", "192.168.64.5"), ("eth1", "10.20.0.5")


def test_another_interface_is_taken_only_when_the_address_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.choice = Uplink(3, "eth1", IPv4Address("10.20.0.5"), 16, 1500, Mac(MAC))
    assert (host.at(0.0), host.identity.problem) == (ETH0, "")
    stood, host.addresses = host.addresses, []
    assert host.at(1.0) == ETH0
    assert "192.168.64.5 is gone from eth0" in host.identity.problem
    assert host.identity.due == GRACE
    host.addresses = stood  # networking was restarted
    assert (host.at(1.5), host.identity.due) == (ETH0, 0.0)
    host.addresses = []
    assert host.at(10.0) == ETH0
    assert host.at(10.0 + GRACE - 0.1) == ETH0
    assert (host.at(10.0 + GRACE), host.identity.problem) == (ETH1, "")


def test_another_address_of_the_same_interface_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.addresses, host.choice = [], replace(HOME, ip=IPv4Address("192.168.64.9"))
    assert host.at(0.0) == ("eth0", "192.168.64.9")


def test_an_interface_that_is_gone_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    del host.links[2]
    host.choice = Uplink(3, "eth1", IPv4Address("10.20.0.5"), 16, 1500, Mac(MAC))
    assert host.at(0.0) == ETH1


def test_without_a_choice_everything_is_kept_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch)
    host.addresses = []
    for now in (0.0, 100.0):
        assert host.at(now) == ETH0
        assert host.identity.problem.startswith("192.168.64.5 is gone from eth0: default route")


def test_the_public_address_of_the_flag_is_everybodys_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host(monkeypatch, public_ip=IPv4Address("203.0.113.7"))
    assert host.at(0.0) == ("eth0", "203.0.113.7")
