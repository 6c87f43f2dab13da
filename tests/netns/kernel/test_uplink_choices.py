"""Which uplink, address and MTU the flags choose, on many hosts, as a real flanneld answered."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from uplink_choices import FLAGS, HOSTS, REFUSED

from flannel_ebpf.agent.join import choose_uplinks
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.commands.flags import options_from
from flannel_ebpf.commands.node import up
from flannel_ebpf.desired.backends import vxlan
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.seen import Seen

CONFIG = parse_network_config('{"Network":"10.1.0.0/16","Backend":{"Type":"vxlan"}}', "test")


def answers() -> dict[str, dict[str, str]]:
    """flanneld's: host -> flags -> interface, address, public address, MTU."""
    found: dict[str, dict[str, str]] = {}
    for line in Path(__file__).with_name("flanneld_choices.txt").read_text().splitlines():
        host, flags, answer = (part.strip() for part in line.split("|"))
        found.setdefault(host, {})[flags] = answer
    return found


def ours(flags: str) -> str:
    given = up.make_context("up", flags.split()).params
    del given["verbosity"]
    try:
        with RouteSocket() as netlink:
            [(uplink, public_ip)] = choose_uplinks(Seen(netlink), options_from(given), CONFIG)
    except ConfigError:
        return REFUSED
    return f"{uplink.name} {uplink.ip} {public_ip} {vxlan.mtu(CONFIG, uplink)}"


@pytest.mark.parametrize(("host", "expected"), answers().items())
def test_each_choice_is_flannelds(namespace: None, host: str, expected: dict[str, str]) -> None:
    batch = "\n".join(HOSTS[host])
    subprocess.run(["ip", "-batch", "-"], input=batch, text=True, check=True, timeout=30)
    assert {flags: ours(flags) for flags in expected} == expected


def test_every_host_and_set_of_flags_was_asked() -> None:
    assert {host: list(found) for host, found in answers().items()} == {
        host: [" ".join(one) for one in FLAGS] for host in HOSTS
    }
