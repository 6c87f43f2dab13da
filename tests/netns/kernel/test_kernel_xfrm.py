from __future__ import annotations

import subprocess
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import PathFacts
from flannel_ebpf.kernel.netlink.xfrm import Policy, mark_paths, outbound_policies
from tests.netns.kernel.space import run

HERE, THERE = IPv4Address("192.168.64.1"), IPv4Address("192.168.64.2")
TMPL = "tmpl proto esp mode transport"


def net(text: str) -> Network:
    return ip_network(text)


def test_policies_that_change_or_stop_what_goes_out_are_read(namespace: None) -> None:
    assert outbound_policies() == []
    run(
        f"ip xfrm policy add src 192.168.64.1/32 dst 192.168.64.2/32 proto udp dir out {TMPL}",
        f"ip xfrm policy add src 0.0.0.0/0 dst 192.168.70.0/24 dir out {TMPL}",
        "ip xfrm policy add src 10.0.0.0/8 dst 10.9.0.0/16 dir out action block",
        f"ip xfrm policy add src 192.168.64.2/32 dst 192.168.64.1/32 dir in {TMPL}",
        "ip xfrm policy add src 0.0.0.0/0 dst 192.168.71.0/24 dir out",  # lets it pass as it is
        f"ip xfrm policy add src fd00::1/128 dst fd00::2/128 dir out {TMPL}",
    )
    assert set(outbound_policies()) == {
        Policy(net("192.168.64.1/32"), net("192.168.64.2/32"), 17),
        Policy(net("0.0.0.0/0"), net("192.168.70.0/24"), 0),
        Policy(net("10.0.0.0/8"), net("10.9.0.0/16"), 0),
        Policy(net("fd00::1/128"), net("fd00::2/128"), 0),
    }


def test_hundreds_of_policies(namespace: None) -> None:
    lines = "".join(f"xfrm policy add src 0.0.0.0/0 dst 10.7.{n}.0/24 dir out {TMPL}\n" for n in range(250))
    batch(lines)
    assert len(outbound_policies()) == 250


def batch(lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


@pytest.mark.parametrize(
    ("policy", "meant"),
    [
        (Policy(net("192.168.64.1/32"), net("192.168.64.2/32"), 17), True),
        (Policy(net("0.0.0.0/0"), net("0.0.0.0/0"), 0), True),
        (Policy(net("192.168.64.1/32"), net("192.168.64.2/32"), 6), False),
        (Policy(net("192.168.64.1/32"), net("192.168.64.3/32"), 0), False),
        (Policy(net("10.1.0.0/16"), net("192.168.64.0/24"), 0), False),
    ],
)
def test_which_paths_a_policy_is_for(policy: Policy, meant: bool) -> None:
    plain = PathFacts(1500, on_link=True)
    found = mark_paths({THERE: plain}, HERE, [policy])
    assert found == {THERE: PathFacts(1500, on_link=True, kernel_only=meant)}


def test_a_policy_is_for_its_own_family() -> None:
    here, there, plain = IPv6Address("fd00::1"), IPv6Address("fd00::2"), PathFacts(1500, on_link=True)
    of_both = Policy(net("fd00::/64"), net("fd00::2/128"), 0), Policy(net("0.0.0.0/0"), net("0.0.0.0/0"), 0)
    assert mark_paths({there: plain}, here, of_both[:1])[there].kernel_only
    assert not mark_paths({there: plain}, here, of_both[1:])[there].kernel_only
