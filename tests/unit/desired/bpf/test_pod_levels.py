"""What the programs are told of a proof."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import PodFlag
from flannel_ebpf.desired.bpf.levels import MOST, Levels
from flannel_ebpf.desired.proof.proof import Guard, Level, Proof
from flannel_ebpf.desired.proof.ranges import of

BASE = int(IPv4Address("10.1.5.0"))


def address(last: int) -> IPv4Address:
    return IPv4Address(BASE + last)


def told(levels: Levels) -> dict[IPv4Network, PodFlag]:
    keys = [abi.SubnetKey.unpack(entry.map_key) for entry in levels.entries]
    flags = [abi.Level.unpack(entry.value).flags for entry in levels.entries]
    assert {entry.map for entry in levels.entries} <= {"fl_levels"}
    return {IPv4Network((key.addr, key.len)): flag for key, flag in zip(keys, flags, strict=True)}


def test_free_pods_and_those_of_the_kernel_are_told_apart() -> None:
    guards = (
        Guard(((BASE + 2, BASE + 2),), Level.FLOWS, "a rule"),
        Guard(((BASE + 3, BASE + 3),), Level.KERNEL, "another"),
    )
    levels = Levels(Proof(((BASE, BASE + 1), (BASE + 4, BASE + 255)), guards))
    found = told(levels)
    assert found[IPv4Network("10.1.5.0/31")] == found[IPv4Network("10.1.5.128/25")] == PodFlag.STATELESS
    assert found[IPv4Network("10.1.5.3/32")] == PodFlag.GUARDED
    assert len(found) == 1 + 1 + 6
    for last in range(256):
        expected = {2: PodFlag(0), 3: PodFlag.GUARDED}.get(last, PodFlag.STATELESS)
        assert levels.of(address(last)) == expected, last
    assert levels.of(IPv4Address("10.1.4.255")) == levels.of(IPv4Address("10.1.6.0")) == PodFlag(0)


def test_without_proof_nothing_is_told() -> None:
    levels = Levels(Proof())
    assert levels.entries == []
    assert levels.of(address(2)) == PodFlag(0)


def test_what_does_not_fit_leaves_all_to_the_kernel() -> None:
    every_second = of((BASE + 2 * at, BASE + 2 * at) for at in range(MOST + 1))
    levels = Levels(Proof(free=every_second))
    assert told(levels) == {IPv4Network("0.0.0.0/0"): PodFlag.GUARDED}
    assert levels.of(address(2)) == PodFlag.GUARDED
    assert len(Levels(Proof(free=every_second[:MOST])).entries) == MOST
