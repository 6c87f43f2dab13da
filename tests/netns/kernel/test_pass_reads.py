"""A pass asks the kernel for each of its tables once, and a second pass finds nothing to do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.agent.bpf_settings import choose_attach, datapath_settings, open_datapath
from flannel_ebpf.agent.bpf_side import BpfSide
from flannel_ebpf.agent.firewall_side import FirewallSide
from flannel_ebpf.agent.kernel_side import KernelSide
from flannel_ebpf.agent.on_demand import OnDemand
from flannel_ebpf.agent.reconcile import Outcome, Reconciler, Sides
from flannel_ebpf.agent.relay_side import RelaySide
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import Mac
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.uplink import find_uplinks
from tests.netns.kernel.space import OWN_MAC, SUBNET, run
from tests.samples import lease, stack

NAMES = {
    18: "links",
    22: "addresses",
    26: "routes",
    30: "neighbours",
    34: "rules",
    38: "qdiscs",
    46: "filters",
}
ONCE = {"links": 1, "addresses": 1, "routes": 1, "rules": 1, "qdiscs": 1}
OF_OURS = {"neighbours": 3}
"""Of the overlay's neighbours, of its FDB, and of the pods."""


@dataclass
class Bench:
    """A reconciler in a namespace, and what it asks the kernel for."""

    reconciler: Reconciler
    kernel: KernelNetwork
    node: Node
    asked: Counter[str]

    def pass_with(self, peers: int) -> Outcome:
        leases = [
            lease(
                IPv4Network((0x0A010000 + (number << 8), 24)),
                IPv4Address("192.168.64.0") + number,
                "vxlan",
                {"VtepMAC": str(Mac(b"\2\1\0\0\0" + bytes([number])))},
            )
            for number in range(10, 10 + peers)
        ]
        self.asked.clear()
        return self.reconciler.run(self.node, leases, self.kernel.look(), may_delete=True)


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "bpffs"
    place.mkdir()
    run(f"mount -t bpf bpf {place}")
    yield place
    run(f"umount --lazy {place}")


@pytest.fixture(params=["ebpf", "kernel"])
def bench(
    request: pytest.FixtureRequest,
    kernel: KernelNetwork,
    uplink: int,
    bpffs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Bench]:
    run("ip link add cni0 type bridge", "ip address add 10.1.5.1/24 dev cni0", "ip link set cni0 up")
    for number in range(3):
        run(f"ip link add v{number} type veth peer p{number}", f"ip link set v{number} master cni0 up")
    options = Options(datapath=request.param, bpf_pin_root=bpffs, state_dir=tmp_path, iface=("up0",))
    config = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
    [uplink] = find_uplinks(kernel.look(), [Family.V4], ("up0",))
    node = Node((stack(config, uplink, SUBNET, OWN_MAC),))
    bpf, caps, why_not = open_datapath(options, config.network, bpffs)
    settings = datapath_settings(options, caps, choose_attach(options))
    sides = Sides(
        KernelSide(kernel, lambda _: None),
        FirewallSide(options, "iptables", lambda: None),
        BpfSide(bpf, kernel.hooks, settings, bpffs, tmp_path, why_not, required=request.param == "ebpf"),
        RelaySide(options, lambda: None, batch=False),
    )
    asked: Counter[str] = Counter()
    dump = RouteSocket.dump

    def counted(self: RouteSocket, kind: int, body: bytes) -> list[bytes]:
        asked[NAMES[kind]] += 1
        return dump(self, kind, body)

    monkeypatch.setattr(RouteSocket, "dump", counted)
    yield Bench(Reconciler(kernel, sides, OnDemand(options.peers, sides.bpf), tuple), kernel, node, asked)
    if bpf:
        bpf.close()


def test_each_table_is_read_once_a_pass(bench: Bench) -> None:
    # The second pass sees the address on the device that the first has made: it is one of the node's own.
    assert not bench.pass_with(5).failures
    assert not bench.pass_with(5).failures
    again = bench.pass_with(5)
    assert (again.writes, list(again.failures)) == (0, [])
    pods = bench.asked.pop("neighbours") == OF_OURS["neighbours"] - (not again.accelerated)
    assert pods
    assert dict(bench.asked) == ONCE
