from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_ebpf.commands.diagnose.monitored import Packet, Wanted, plain, told
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.contract.learned import Event
from flannel_ebpf.kernel.programs.drops import Drop

ONE, OTHER, PEER, NONE = map(IPv4Address, ("10.1.5.2", "10.1.6.2", "192.0.2.2", 0))
EVENT = Event(1_500_000_000, 3, 1464, ONE, OTHER, NONE, 34504, 80, 6, Hook.FROM_POD, Reason.FAST_VXLAN, 0x18)


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (EVENT, "tcp 10.1.5.2:34504 > 10.1.6.2:80 [P.] 1464"),
        (replace(EVENT, proto=1, tcp_flags=0), "icmp 10.1.5.2 > 10.1.6.2 1464"),
        (replace(EVENT, source=IPv6Address("fc00::1"), target=IPv6Address("fc00::2")),
         "tcp [fc00::1]:34504 > [fc00::2]:80 [P.] 1464"),
        (replace(EVENT, proto=0), "another protocol, 1464"),
        (replace(EVENT, tcp_flags=2, outer=PEER, reason=Reason.DROP_PEER_SOURCE),
         "tcp 10.1.5.2:34504 > 10.1.6.2:80 [S] 1464 from 192.0.2.2"),
    ],
)  # fmt: skip
def test_a_packet_in_a_line(event: Event, line: str) -> None:
    assert told(Packet.of_event(event)) == line


def test_plain_values_name_device_hook_and_reason() -> None:
    values = plain(Packet.of_event(EVENT), {3: "veth1"})
    assert (values["device"], values["hook"], values["reason"], values["at"]) == (
        "veth1", "from_pod", "fast_vxlan", 1.5,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [
        (Wanted(), True), (Wanted(address=OTHER), True), (Wanted(address=PEER), False),
        (Wanted(port=80), True),
        (Wanted(port=81), False), (Wanted(reason="fast"), True), (Wanted(reason="drop"), False),
    ],
)  # fmt: skip
def test_filters(wanted: Wanted, shown: bool) -> None:
    assert wanted(Packet.of_event(EVENT)) is shown


DROP = Drop(2_500_000_000, 4, "netfilter_drop", "nf_hook_slow", ONE, OTHER, 34504, 80, 6, 60)


def test_what_the_kernel_drops_says_why_and_where() -> None:
    packet = Packet.of_drop(DROP)
    assert told(packet) == "tcp 10.1.5.2:34504 > 10.1.6.2:80 60 in nf_hook_slow"
    values = plain(packet, {})
    assert (values["hook"], values["reason"], values["outer"]) == ("kernel", "netfilter_drop", "")


@pytest.mark.parametrize(
    ("reason", "shown"), [("", True), ("drop", True), ("netf", True), ("fast", False), ("drop_broken", False)]
)
def test_a_reason_of_the_kernel_is_a_drop_as_well(reason: str, shown: bool) -> None:
    assert Wanted(reason=reason)(Packet.of_drop(DROP)) is shown


@pytest.mark.parametrize(
    ("wanted", "shown"),
    [(Wanted(), True), (Wanted(dual=True), False), (Wanted(reason="not_family", dual=True), True)],
)
def test_of_two_families_the_packets_of_the_other_are_told_once(wanted: Wanted, shown: bool) -> None:
    assert wanted(Packet.of_event(replace(EVENT, proto=0, reason=Reason.NOT_FAMILY))) is shown
