"""Long and many: super-packets whole, a busy connection nearly all by BPF, the mode changed under traffic."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab, netns
from flannel_ebpf.lab.host import Host
from tests.netns.kinds import BULK, Pair
from tests.netns.labs import MakeLab
from tests.netns.life import restart
from tests.netns.paths import watch
from tests.netns.traffic import (
    Stream,
    connection,
    numbers,
    pump,
    send_super,
    send_udp,
    transfer,
    udp,
)
from tests.polls import eventually

log = logging.getLogger("figures")
NETWORKS: dict[str, dict[str, object]] = {"vxlan": {}, "host-gw": {"backend": "host-gw"}}


@pytest.fixture(scope="module")
def labs(make_shared_lab: MakeLab) -> dict[str, Lab]:
    return {name: make_shared_lab(datapath="ebpf", **spec) for name, spec in NETWORKS.items()}


@pytest.fixture
def pair(labs: dict[str, Lab]) -> Pair:
    lab = labs["vxlan"]
    return Pair(lab, lab.node("n1"), lab.node("n2"))


def test_a_busy_connection_is_carried_by_bpf(pair: Pair) -> None:
    server = pair.server.popen(["iperf3", "--server", "--one-off", "--json"])
    eventually(lambda: "5201" in pair.server.run(["ss", "-Hltn"]).stdout, "iperf3's start")
    with watch(pair.sender) as near, watch(pair.receiver) as far:
        said = pair.client.run(["iperf3", "--json", "-t", "3", "-c", str(pair.server.ip)]).stdout
    server.wait(60)
    gbit = json.loads(said)["end"]["sum_received"]["bits_per_second"] / 1e9
    log.info("iperf3, 3 s: %.1f Gb/s, %.5f and %.5f of it by BPF", gbit, near.share, far.share)
    assert near.share >= 0.99, near
    assert far.share >= 0.99, far
    assert near.at(Hook.FROM_POD, Reason.LEARN_REVALIDATE) <= 2


def test_a_long_transfer_is_right_to_the_last_byte(labs: dict[str, Lab]) -> None:
    for lab in labs.values():
        pair = Pair(lab, lab.node("n1"), lab.node("n2"))
        with watch(pair.sender) as near, watch(pair.receiver) as far:
            transfer(pair.client, pair.server, 1 << 28)
        assert near.share > 0.99, near
        assert far.share > 0.99, far


@pytest.fixture(params=["vxlan", "host-gw"])
def routing_pod(
    labs: dict[str, Lab], request: pytest.FixtureRequest
) -> Generator[tuple[Pair, Host], None, None]:
    """n2p1 forwards what it gets to a namespace behind it, as a container host inside a pod does."""
    lab = labs[request.param]
    pair = Pair(lab, lab.node("n1"), lab.node("n2"))
    pod, ns, mtu = pair.server, f"{lab.spec.name}-n2p88", pair.sender.mtu
    netns.create([ns])
    behind = Host("behind", ns, pod.ip)
    netns.configure(
        pod.ns,
        [
            # no larger than the overlay's: segments must come out as they went in
            f"link add inner0 mtu {mtu} type veth peer name eth0 mtu {mtu} netns {ns}",
            "addr add 172.30.0.1/24 dev inner0",
            "link set inner0 up",
        ],
    )
    netns.configure(
        ns, ["addr add 172.30.0.2/24 dev eth0", "link set eth0 up", "route add default via 172.30.0.1"]
    )
    pod.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])
    for proto in ("tcp", "udp"):
        rule = f"PREROUTING -i eth0 -p {proto} --dport 5000:5100 -j DNAT --to 172.30.0.2"
        pod.run(["iptables", "-w", "-t", "nat", "-A", *rule.split()])
    yield pair, behind
    pod.run(["ip", "link", "delete", "inner0"])
    netns.delete([ns])
    pod.run(["iptables", "-w", "-t", "nat", "-F"])
    pod.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])


@pytest.mark.parametrize("offload", ["on", "off"])
def test_a_decapsulated_packet_may_be_forwarded_once_more(
    routing_pod: tuple[Pair, Host], offload: str
) -> None:
    """Without offloads on the next link super-packets are cut up there, by what the tunnel left of them."""
    pair, behind = routing_pod
    for host, device in ((pair.server, "inner0"), (behind, "eth0")):
        host.run(["ethtool", "-K", device, "tx", offload, "tso", offload, "gso", offload, "gro", offload])
    to = (str(pair.server.ip), 5000)
    with connection(pair.client, behind, to, 5000) as (near, far), watch(pair.receiver) as seen:
        pump(near, far, 4 * BULK)
        pump(far, near, 4 * BULK)
    assert seen.path == "BPF", seen
    arrived = sum(seen.at(Hook.FROM_PEER, reason) for reason in (Reason.FAST_VXLAN, Reason.FAST_DIRECT))
    assert arrived < 4 * BULK / 1400 / 2, "no super-packets"
    with udp(pair.client) as source, udp(behind, 5001) as target:
        for number in range(60):
            payload = number.to_bytes(4, "big") * 7000
            send_super(source, (to[0], 5001), payload, 1400)
            got = [target.recv(65536) for _ in range(20)]
            assert b"".join(got) == payload
            assert {len(one) for one in got} == {1400}


def test_a_next_link_that_is_narrower_is_learned(routing_pod: tuple[Pair, Host]) -> None:
    pair, behind = routing_pod
    pair.server.run(["ip", "link", "set", "inner0", "mtu", "1200"])
    with connection(pair.client, behind, (str(pair.server.ip), 5000), 5000) as (near, far):
        pump(near, far, BULK)
        pump(far, near, BULK)
    pair.client.run(["ip", "route", "flush", "cache"])


def test_a_full_flow_table_only_means_more_through_the_kernel(make_lab: MakeLab) -> None:
    flags = ("--flow-entries=64", "--revalidate=0.1")  # what fl_open knows of evicted flows ends soon
    lab = make_lab(datapath="ebpf", pods_per_node=1, extra_up_args=flags)
    pair = Pair(lab, lab.node("n1"), lab.node("n2"))
    with udp(pair.server) as target, watch(pair.sender) as seen:
        there = (str(pair.server.ip), target.getsockname()[1])
        sources = [udp(pair.client) for _ in range(300)]
        for _ in range(10):
            for source in sources:
                send_udp(source, there, 10)
            assert len(numbers(target, 3000)) == 3000
        for source in sources:
            source.close()
    assert seen.at(Hook.FROM_POD, Reason.LEARN_NEW) > 500
    assert seen.kernel > 1000
    with watch(pair.sender) as seen:
        transfer(pair.client, pair.server, BULK)
    assert seen.path == "BPF", seen


def go_on(stream: Stream, count: int) -> None:
    before = len(stream.got)
    eventually(lambda: len(stream.got) > before + count, "the stream")


def test_the_fast_path_changes_under_traffic_without_loss(pair: Pair) -> None:
    """Every choice follows every other, at 1,000 packets a second each way."""
    turns = {
        pair.sender: ("off", "subnets", "flows", "subnets", "off", "flows"),
        pair.receiver: ("off", "flows"),
    }
    with Stream(pair.client, pair.server) as there, Stream(pair.server, pair.client) as back:
        for node, choices in turns.items():
            for choice in choices:
                restart(node, f"--fastpath={choice}")
                go_on(there, 50)
                if choice == "off":
                    assert node.hooks() == []
                    continue
                with watch(node) as seen:
                    go_on(there, 200)
                assert seen.path == "BPF", seen
    assert there.lost == back.lost == set()
    assert there.sent > 1000
