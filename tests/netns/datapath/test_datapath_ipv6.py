"""IPv6 by BPF beside IPv4: {kernel, BPF} sender x {kernel, BPF} receiver, each family by its own programs.

Nodes with programs talk to nodes that have nothing but the kernel's overlay, in one cluster of both families.
Uplinks compute checksums themselves here, so that the kernel at the far end checks every one.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab, Node, Pod
from flannel_ebpf.lab.counters import Reasons, reasons
from tests.netns.labs import MakeLab
from tests.netns.life import flannel, restart, stream

DATAPATHS = {"n1": "ebpf", "n2": "kernel", "n3": "ebpf", "n4": "kernel"}
PAIRS = (("n2", "n4"), ("n2", "n1"), ("n1", "n2"), ("n1", "n3"))
NETWORKS: dict[str, dict[str, object]] = {
    "vxlan": {},
    "subnets": {"fastpath": "subnets"},
    "host-gw": {"backend": "host-gw"},
    "direct": {"backend_config": {"DirectRouting": True}},
    "v6 alone": {"family": "6"},
}
MEGABYTES = 30


@pytest.fixture(scope="module")
def labs(make_shared_lab: MakeLab) -> Callable[[str], Lab]:
    """One lab per network, made when it is first asked for."""
    made: dict[str, Lab] = {}

    def lab(network: str) -> Lab:
        if network not in made:
            spec = {"family": "dual", **NETWORKS[network]}
            made[network] = make_shared_lab(nodes=4, pods_per_node=1, datapaths=DATAPATHS, **spec)
            for node in made[network].nodes:
                node.run(["ethtool", "-K", "eth0", "tx", "off"])
        return made[network]

    return lab


def wrong_checksums(nodes: list[Node]) -> int:
    said = (node.run(["nstat", "-asz", "Udp6InCsumErrors"]).stdout for node in nodes)
    return sum(int(re.findall(r"Udp6InCsumErrors\s+(\d+)", one)[0]) for one in said)


def ping(source: Pod, target: Pod, family: Family) -> None:
    said = source.run(["ping", "-c60", "-i0.01", "-W10", str(target.at(family))]).stdout
    assert " 0% packet loss" in said


def bulk(source: Pod, target: Pod, family: Family) -> None:
    server = target.popen(["iperf3", "--server", "--one-off", "--forceflush"])
    assert server.stdout
    while "listening" not in server.stdout.readline():
        pass
    source.run(["iperf3", "--client", str(target.at(family)), "--bytes", f"{MEGABYTES}M"])
    server.communicate(timeout=30)


def datagrams(source: Pod, target: Pod, family: Family) -> None:
    with stream(source, target, family=family) as sent:
        pass
    assert sent.lost == 0


def fast(found: Reasons, hook: Hook) -> int:
    return sum(found[hook, one] for one in (Reason.FAST_VXLAN, Reason.FAST_DIRECT))


@pytest.mark.parametrize("kind", [ping, bulk, datagrams])
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: "-".join(DATAPATHS[name] for name in pair))
@pytest.mark.parametrize("network", NETWORKS)
def test_everything_arrives_and_counters_say_how(
    labs: Callable[[str], Lab],
    network: str,
    pair: tuple[str, str],
    kind: Callable[[Pod, Pod, Family], None],
) -> None:
    lab = labs(network)
    nodes = [lab.node(name) for name in pair]
    watched = [node for node in nodes if DATAPATHS[node.name] == "ebpf"]
    family = None if network == "v6 alone" else Family.V6
    wrong = wrong_checksums(nodes)
    before = [reasons(node, family) for node in watched]
    kind(nodes[0].pods[0], nodes[1].pods[0], Family.V6)
    for node, earlier in zip(watched, before, strict=True):
        found = reasons(node, family) - earlier
        hook = Hook.FROM_POD if node is nodes[0] else Hook.FROM_PEER
        assert fast(found, hook) > 30, dict(found)
        assert not any(found[hook, Reason.DROP_BROKEN] for hook in Hook)
    assert wrong_checksums(nodes) == wrong


def test_each_family_has_programs_of_its_own(labs: Callable[[str], Lab]) -> None:
    """What one family's carry the other one's never do."""
    lab = labs("vxlan")
    n1, n3 = lab.node("n1"), lab.node("n3")
    for family, other in ((Family.V4, Family.V6), (Family.V6, Family.V4)):
        before = [reasons(n1, one) for one in (family, other)]
        ping(n1.pods[0], n3.pods[0], family)
        own, foreign = (reasons(n1, one) - old for one, old in zip((family, other), before, strict=True))
        assert fast(own, Hook.FROM_POD) > 30
        assert not fast(foreign, Hook.FROM_POD)
        assert not fast(foreign, Hook.FROM_PEER)


def test_a_network_of_ipv4_loads_nothing_of_ipv6(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="ebpf", nodes=2, pods_per_node=1)
    node = lab.node("n1")
    assert [hook.program for hook in node.hooks() if hook.device == "eth0"] == ["fl_to_peer", "fl_from_peer"]
    assert [path.name for path in node.pin_root.rglob("*:*")] == []


def test_programs_of_ipv6_outlive_the_daemon_and_go_with_down(make_lab: MakeLab) -> None:
    lab = make_lab(family="dual", datapath="ebpf", nodes=2, pods_per_node=1)
    n1, n2 = lab.nodes
    with stream(n1.pods[0], n2.pods[0], family=Family.V6) as sent:
        restart(n1, kill=True)
        sent.more(500)
    assert sent.lost == 0
    flannel(n1, "down")
    assert n1.hooks() == []
    assert [*n1.pin_root.rglob("fl_*")] == []
    ping(n1.pods[0], n2.pods[0], Family.V6)
