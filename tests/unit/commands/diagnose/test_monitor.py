from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from flannel_ebpf.commands.diagnose.monitor import Wanted, plain, told
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.contract.learned import Event

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
    assert told(event) == line


def test_plain_values_name_device_hook_and_reason() -> None:
    values = plain(EVENT, {3: "veth1"})
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
    assert wanted(EVENT) is shown
