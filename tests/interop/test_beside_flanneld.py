"""A cluster of a real flanneld and us: pods talk, leases look alike, each survives what the other does."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab, Node, Pod
from tests.interop.flanneld import Flanneld, started
from tests.netns.kinds import BULK
from tests.netns.labs import MakeLab
from tests.netns.life import chat, flannel, ready, stream, tell
from tests.netns.paths import watch
from tests.netns.traffic import ping, transfer
from tests.polls import eventually, unchanging

CONFIGS: dict[str, dict[str, object]] = {
    "vxlan": {"backend": "vxlan"},
    "DirectRouting": {"backend": "vxlan", "backend_config": {"DirectRouting": True}},
    "host-gw": {"backend": "host-gw"},
    "udp": {"backend": "udp"},
    "nftables": {"backend": "vxlan", "network_config": {"EnableNFTables": True}},
}


def mixed(make_lab: MakeLab, flanneld: Path, name: str, *flags: str) -> tuple[Lab, Flanneld]:
    """Our daemon with programs on n1, flanneld on n2, a pod on each."""
    lab = make_lab(datapath="ebpf", start_daemons=False, pods_per_node=1, **CONFIGS[name])
    n1, n2 = lab.nodes
    (theirs,) = started(flanneld, [n2], *flags)
    n1.start_daemon(flags)
    lab.wait_ready()
    lab.add_pods()
    lab.wait_attached([n1])
    return lab, theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_pods_talk_and_bpf_carries_it(make_lab: MakeLab, flanneld: Path, name: str) -> None:
    lab, theirs = mixed(make_lab, flanneld, name, "--ip-masq")
    one, two = lab.pod("n1p1"), lab.pod("n2p1")
    assert ping(one, two.ip, 50) == ping(two, one.ip, 50) == 50
    with watch(lab.node("n1"), "flannel.1" if name == "DirectRouting" else None) as seen:
        transfer(one, two, BULK)
    if name != "udp":  # flanneld's proxy takes finished packets only: docs/udp.md
        assert seen.path == "BPF", seen
    assert theirs.running


def essence(lease: dict[str, object]) -> dict[str, object]:
    """Return a lease's value without what is one node's alone."""
    data = lease.get("BackendData")
    kept = {**data, "VtepMAC": "a MAC"} if isinstance(data, dict) and "VtepMAC" in data else data
    return {**lease, "PublicIP": "an address", "BackendData": kept}


@pytest.mark.parametrize("name", ["vxlan", "host-gw", "udp"])
def test_both_write_the_same_lease_and_the_same_subnet_env(
    make_lab: MakeLab, flanneld: Path, name: str
) -> None:
    lab = make_lab(datapath="kernel", start_daemons=False, pods_per_node=0, **CONFIGS[name])
    n1, n2 = lab.nodes
    started(flanneld, [n2], "-ip-masq")
    n1.start_daemon(["--ip-masq"])
    lab.wait_ready()
    ours, theirs = (lab.leases()[node.subnet] for node in (n1, n2))
    assert list(ours) == list(theirs), "in Go's order"
    assert essence(ours) == essence(theirs)
    lines = [node.subnet_file.read_text().replace(str(node.gateway), "GATEWAY") for node in (n1, n2)]
    assert lines[0] == lines[1]


def what_stands(node: Node) -> list[str]:
    """Return everything in the kernel that flanneld makes, without counters."""
    commands = (
        "ip -d -o link show dev flannel.1 | sed 's/qlen [0-9]*//'",
        "ip -o -4 address show dev flannel.1",
        "ip route show",
        "ip neigh show dev flannel.1 nud permanent",
        "bridge fdb show dev flannel.1",
        "iptables-save | grep ^-A",
        "nft list table ip flannel-ipv4",
        f"cat {node.subnet_file}",
    )
    lines = node.run(["sh", "-c", "; ".join(commands)], check=False).stdout.splitlines()
    return sorted([*lines, *map(str, node.hooks())])


@pytest.mark.parametrize("name", ["vxlan", "host-gw", "nftables"])
def test_a_node_goes_over_and_back_without_a_lost_packet(
    make_lab: MakeLab, flanneld: Path, name: str
) -> None:
    lab = make_lab(datapath="ebpf", start_daemons=False, **CONFIGS[name])
    node = lab.node("n1")
    first, _ = started(flanneld, lab.nodes, "-ip-masq")
    lab.wait_ready()
    lab.add_pods()
    before, leases = what_stands(node), lab.leases()
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as back,
        chat(lab.pod("n2p2"), lab.pod("n1p2")),
    ):
        first.stop()
        node.start_daemon(["--ip-masq"])
        ready(node)
        lab.wait_attached([node])
        for one in (there, back):
            one.more(100)
        unchanging(lambda: node.daemon_log().count("changes made"), "the number of changes made", 3)
        flannel(node, "down")
        first.start()
    assert (there.lost, back.lost) == (0, 0)
    assert what_stands(node) == before
    assert lab.leases() == leases


def test_a_key_that_is_no_lease_stops_neither(make_lab: MakeLab, flanneld: Path) -> None:
    lab, theirs = mixed(make_lab, flanneld, "vxlan")
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/subnets/hello", "{}")
    lease = {"PublicIP": "192.168.64.77", "BackendType": "vxlan"}
    value = json.dumps({**lease, "BackendData": {"VNI": 1, "VtepMAC": "02:00:00:00:00:77"}})
    lab.etcdctl("put", f"{lab.spec.etcd_prefix}/subnets/10.1.200.0-24", value)
    for node in lab.nodes:
        follows = partial(lambda node: "10.1.200.0/24" in node.run(["ip", "route"]).stdout, node)
        eventually(follows, f"{node.name} follows")
    assert "skipping malformed etcd event" in theirs.said()
    assert "subnets/hello" in lab.node("n1").daemon_log()


def test_flanneld_whose_key_is_deleted_ends_and_comes_back_beside_us(
    make_lab: MakeLab, flanneld: Path
) -> None:
    lab, theirs = mixed(make_lab, flanneld, "vxlan")
    n1, n2 = lab.nodes
    subnet = n2.subnet
    lab.etcdctl("del", f"{lab.spec.etcd_prefix}/subnets/{str(subnet).replace('/', '-')}")
    eventually(lambda: not theirs.running, "flanneld ends")
    eventually(lambda: str(subnet) not in n1.run(["ip", "route"]).stdout, "we forget its peer")
    theirs.start()
    assert n2.subnet == subnet
    eventually(lambda: str(subnet) in n1.run(["ip", "route"]).stdout, "the peer is back")
    assert ping(lab.pod("n1p1"), lab.pod("n2p1").ip, 20) == 20


def pings(source: Pod, target: Pod) -> Callable[[], bool]:
    return lambda: ping(source, target.ip, 3, patience=1) == 3


def told(node: Node) -> str:
    return tell(node, "status").stdout


def test_a_daemon_that_ended_without_down_leaves_the_node_to_flanneld(
    make_lab: MakeLab, flanneld: Path
) -> None:
    """Its programs do not know the node that joins, and drop what comes from it until they stand aside."""
    lab = make_lab(datapath="ebpf", start_daemons=False, pods_per_node=1, nodes=3, backend="vxlan")
    n1, n2, n3 = lab.nodes
    started(flanneld, [n2])
    n1.start_daemon(["--stand-aside=6"])
    ready(n1)
    one, two = n1.add_pod(), n2.add_pod()
    lab.wait_attached([n1])
    with (
        stream(one, two) as there,
        stream(two, one) as back,
        chat(one, two),
    ):
        n1.kill_daemon()
        assert "its programs go on with what they know for" in told(n1)
        started(flanneld, [n1, n3])
        three = n3.add_pod()
        eventually(pings(one, three), lambda: f"a node that joined is reached:\n{told(n1)}", 30)
        eventually(pings(three, one), "and reaches us", 30)
        assert "the programs stand aside" in told(n1)
        assert "stand before it" in " ".join(tell(n1, "doctor").stdout.split())
        for one_way in (there, back):
            one_way.more(500)
        flannel(n1, "down")
        for one_way in (there, back):
            one_way.more(500)
    assert (there.lost, back.lost) == (0, 0)
    assert n1.hooks() == []
    assert pings(one, three)()


@pytest.mark.parametrize("name", ["vxlan", "host-gw", "nftables"])
def test_both_at_once_on_one_node_do_not_fight(make_lab: MakeLab, flanneld: Path, name: str) -> None:
    lab, _ = mixed(make_lab, flanneld, name, "--ip-masq")
    n1 = lab.node("n1")
    [beside] = started(flanneld, [n1], "-ip-masq")

    def changes() -> int:
        return n1.daemon_log().count("changes made")

    unchanging(changes, "the number of changes made", 3)
    watched, ours = (
        (["nft", "monitor"], "flannel") if name == "nftables" else (["ip", "monitor", "route"], "10.1.")
    )
    monitor = n1.popen(watched)
    unchanging(changes, "the number of changes made", 5)
    monitor.terminate()
    events = monitor.communicate()[0].splitlines()
    assert not [line for line in events if ours in line]
    assert beside.running
    assert ping(lab.pod("n1p1"), lab.pod("n2p1").ip, 20) == 20
    n1.stop_daemon()
    assert ping(lab.pod("n2p1"), lab.pod("n1p1").ip, 20) == 20
    flannel(n1, "down")
    assert ping(lab.pod("n2p1"), lab.pod("n1p1").ip, 20) == 20
    n1.start_daemon(["--ip-masq"])
    ready(n1)
    beside.stop()
    lab.wait_attached([n1])
    assert ping(lab.pod("n1p1"), lab.pod("n2p1").ip, 20) == 20
    assert "Traceback" not in n1.daemon_log()


def test_the_way_back_with_udp(make_lab: MakeLab, flanneld: Path) -> None:
    """flanneld needs port and device for itself, which our relay would keep."""
    lab, _ = mixed(make_lab, flanneld, "udp")
    n1 = lab.node("n1")
    one, two = lab.pod("n1p1"), lab.pod("n2p1")
    assert ping(one, two.ip, 20) == 20
    subnet = n1.subnet
    flannel(n1, "down")
    [back] = started(flanneld, [n1])
    eventually(pings(one, two), back.tail, 30)
    assert (n1.subnet, back.running) == (subnet, True)


def test_the_udp_device_has_flannelds_address_and_route(make_lab: MakeLab, flanneld: Path) -> None:
    """As `ip address`, `ip route` and `ethtool -i` show them in old articles."""
    lab, _ = mixed(make_lab, flanneld, "udp")
    shown = []
    for node in lab.nodes:
        device = json.loads(node.run(["ip", "-json", "address", "show", "dev", "flannel0"]).stdout)[0]
        addresses = [
            (one["local"], one["prefixlen"], one["scope"])
            for one in device["addr_info"]
            if one["family"] == "inet"
        ]
        assert [address for address, _, _ in addresses] == [str(node.subnet.network_address)]
        routes = json.loads(node.run(["ip", "-json", "route", "show", "dev", "flannel0"]).stdout)
        driver = node.run(["ethtool", "-i", "flannel0"]).stdout.splitlines()[0]
        shown.append(
            (
                [rest for _, *rest in addresses],
                [(route["dst"], route.get("scope"), route.get("gateway")) for route in routes],
                (device["mtu"], sorted({"POINTOPOINT", "UP", "NOARP"} & set(device["flags"])), driver),
            )
        )
    assert shown[0] == shown[1]
