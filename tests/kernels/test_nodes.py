"""Two nodes on this kernel, with each backend: what pods send is carried, guarded, translated and healed."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from flannel_ebpf.contract.enums import Cap
from flannel_ebpf.contract.features import names
from flannel_ebpf.kernel.programs.probe import has_tcx, probe
from flannel_ebpf.lab import Lab, Node
from tests.netns import kinds
from tests.netns.kinds import Kind, Pair
from tests.netns.labs import MakeLab
from tests.netns.life import chat, flannel, restart, stream
from tests.netns.paths import programs
from tests.netns.traffic import Stream, delivered
from tests.polls import eventually

SLOW = 300.0
REVALIDATE = 1.0
NETWORKS: dict[str, dict[str, Any]] = {
    "vxlan": {"family": "dual"},
    "host-gw": {"backend": "host-gw"},
    "udp": {"backend": "udp"},
}
BPF, KERNEL = "BPF", "kernel"
CAPS = probe()
SUPER = (BPF if Cap.ENCAP_L2_ETH in CAPS else KERNEL, BPF if Cap.DECAP_L4_UDP in CAPS else KERNEL)
"""Paths of vxlan's super-packets of UDP."""
KINDS: dict[str, tuple[Kind, tuple[str, str]]] = {
    "TCP": (lambda pair: kinds.tcp_of(pair, 4 << 20), (BPF, BPF)),
    "UDP": (kinds.small_udp, (BPF, BPF)),
    "ICMP": (kinds.icmp_echo, (BPF, BPF)),
    "UDP GSO": (kinds.udp_gso, (BPF, BPF)),
    "fragments": (kinds.fragments, (KERNEL, KERNEL)),
    "DNAT": (kinds.dnat, (KERNEL, BPF)),
}
EXCEPTIONS = {("vxlan", "UDP GSO"): SUPER}
LEFT_OUT = {("udp", "DNAT"), ("udp", "UDP GSO")}
CELLS = [(network, kind) for network in NETWORKS for kind in KINDS if (network, kind) not in LEFT_OUT]


@pytest.fixture(scope="module")
def labs(make_shared_lab: MakeLab) -> Callable[[str], Lab]:
    """One lab a network, made when it is first asked for."""
    made: dict[str, Lab] = {}

    def lab(network: str) -> Lab:
        if network not in made:
            made[network] = start(make_shared_lab, **NETWORKS[network])
        return made[network]

    return lab


def start(make_lab: MakeLab, before: Callable[[Lab], object] | None = None, **fields: Any) -> Lab:
    """Make a lab where a daemon takes a minute to start; `before` is done to it when none runs yet."""
    flags = (f"--revalidate={REVALIDATE}", "--ip-masq")
    lab = make_lab(datapath="ebpf", pods_per_node=1, start_daemons=False, extra_up_args=flags, **fields)
    if before:
        before(lab)
    for node in lab.nodes:
        node.start_daemon()
    lab.wait_ready(deadline=SLOW)
    lab.add_pods()
    lab.wait_attached(deadline=SLOW)
    return lab


def pair_of(lab: Lab) -> Pair:
    return Pair(lab, lab.node("n1"), lab.node("n2"))


@pytest.mark.parametrize(("network", "kind"), CELLS)
def test_traffic_takes_the_path_it_should(labs: Callable[[str], Lab], network: str, kind: str) -> None:
    pair = pair_of(labs(network))
    run, expected = KINDS[kind]
    if kinds.sends_whole(pair.client):
        expected = EXCEPTIONS.get((network, kind), expected)
    seen = run(pair)
    said = [dict(one.reasons) for one in seen]
    for one, path in zip(seen, expected, strict=True):
        # how much is left to the kernel depends on what this kernel lacks: super-packets on 5.10
        assert (one.fast > 0) == (path == BPF), said


def test_pods_reach_the_world_under_their_nodes_address(labs: Callable[[str], Lab]) -> None:
    sender, _ = kinds.masquerade(pair_of(labs("vxlan")))
    assert sender.fast == 0


@pytest.mark.parametrize("network", NETWORKS)
def test_a_drop_rule_stops_a_running_flow(labs: Callable[[str], Lab], network: str) -> None:
    pair = pair_of(labs(network))
    rule = ["FORWARD", "-s", str(pair.client.ip), "-d", str(pair.server.ip), "-j", "DROP"]
    with Stream(pair.client, pair.server) as running:
        eventually(lambda: len(running.got) > 300, "the stream", 60)
        pair.sender.run(["iptables", "-w", "-I", *rule])
        try:
            eventually(running.silent, "stopping", 60)
            stopped = len(running.got)
            time.sleep(2 * REVALIDATE)  # the rule holds: the next revalidations are dropped too
            assert len(running.got) == stopped
        finally:
            pair.sender.run(["iptables", "-w", "-D", *rule])
        eventually(lambda: len(running.got) > stopped + 100, "going on without the rule", 60)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_killed_daemon_and_its_successor_cost_no_packet(labs: Callable[[str], Lab], network: str) -> None:
    lab = labs(network)
    node = lab.node("n1")
    stood = {hook.prog_id for hook in node.hooks()}
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1"), rate=200) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1"), rate=200) as back,
        chat(lab.pod("n2p1"), lab.pod("n1p1"), 7002),
    ):
        words = restart(node, kill=True)
    assert "changes made" not in words
    assert {hook.prog_id for hook in node.hooks()} == stood
    if network != "udp":  # its relay is a process of the daemon's
        assert (there.lost, back.lost) == (0, 0)


@pytest.mark.parametrize(
    "command",
    ["ip link del flannel.1", "ip link set flannel.1 down", "tc qdisc del dev {veth} clsact; true"],
    ids=["device deleted", "device down", "filters deleted"],
)
def test_what_is_broken_is_mended(labs: Callable[[str], Lab], command: str) -> None:
    lab = labs("vxlan")
    node, veth = lab.node("n1"), lab.pod("n1p1").veth
    stood = programs(node, veth)
    assert stood
    node.run(["sh", "-c", command.format(veth=veth)])
    eventually(lambda: device_up(node), "the overlay device is there", 60)
    eventually(lambda: programs(node, veth) == stood, "the pod's programs stand", 60)
    pair = pair_of(lab)
    eventually(lambda: delivered(pair.client, pair.server, 10) == 10, "packets arrive again", 60)
    assert all(one.fast for one in kinds.small_udp(pair))


def device_up(node: Node) -> bool:
    shown = node.run(["ip", "-json", "link", "show", "dev", "flannel.1"], check=False).stdout
    return bool(shown) and "UP" in json.loads(shown)[0]["flags"]


def test_ways_of_attaching(labs: Callable[[str], Lab]) -> None:
    """tcx where this kernel has it, clsact elsewhere; from one to the other without a lost packet."""
    lab = labs("vxlan")
    node = lab.node("n1")
    stood = node.hooks()
    assert {hook.via for hook in stood} == {"tcx" if has_tcx() else "clsact"}
    if not has_tcx():
        return
    with stream(lab.pod("n2p1"), lab.pod("n1p1"), rate=200) as there:
        restart(node, "--attach=clsact")
        assert node.hooks() == sorted(replace(hook, via="clsact") for hook in stood)
        restart(node)
        assert node.hooks() == stood
    assert there.lost == 0


def test_status_says_how_packets_are_carried(labs: Callable[[str], Lab]) -> None:
    lab = labs("vxlan")
    said = flannel(lab.node("n1"), "status")
    assert f"BPF by {'tcx' if has_tcx() else 'clsact'}" in said
    lacks = [line.split()[1].rstrip(":") for line in said.splitlines() if line.startswith("lacks ")]
    assert lacks == names(~CAPS)


@pytest.mark.parametrize("target", ["n2p1"])
def test_ipv6_pods_talk(labs: Callable[[str], Lab], target: str) -> None:
    lab = labs("vxlan")
    address = lab.pod(target).ip6
    said = lab.pod("n1p1").run(["ping", "-6", "-q", "-c20", "-i0.1", "-W10", str(address)]).stdout
    assert " 0% packet loss" in said
