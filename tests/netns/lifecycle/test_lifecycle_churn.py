"""Pods come and go, the uplink moves: the node follows, and others' traffic does not notice."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from ipaddress import IPv4Address

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node, Pod
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.counters import reasons
from tests.netns import traffic
from tests.netns.labs import MakeLab
from tests.netns.life import chat, stream
from tests.polls import eventually

log = logging.getLogger(__name__)

CHURN_SECONDS = 60.0 if os.environ.get("FLANNEL_TEST_LONG") else 6.0
PODS_A_SECOND = 20


@pytest.fixture(scope="module")
def lab(make_shared_lab: MakeLab) -> Lab:
    return make_shared_lab(datapath="ebpf", fastpath="subnets")


def places(node: Node) -> dict[IPv4Address, int]:
    """Where the programs think that pods are: address -> ifindex."""
    with Map.open(node.map_path("fl_pods")) as pods:
        return {
            abi.AddrKey.unpack(key).addr: abi.Pod.unpack(value).ifindex for key, value in pods.items().items()
        }


def ping(source: Pod, target: IPv4Address) -> bool:
    return source.run(["ping", "-c1", "-W1", str(target)], check=False).returncode == 0


def ifindex(node: Node, device: str) -> int:
    return int(json.loads(node.run(["ip", "-json", "link", "show", "dev", device]).stdout)[0]["ifindex"])


def test_pods_come_and_go_beside_a_stream(lab: Lab) -> None:
    """Bare veths, made and deleted in batches: 20 a second, as fast as a busy node sees them."""
    node = lab.node("n1")
    born = 0
    with (
        stream(lab.pod("n2p1"), lab.pod("n1p1")) as there,
        stream(lab.pod("n1p1"), lab.pod("n2p1")) as back,
        chat(lab.pod("n1p2"), lab.pod("n2p2")) as talk,
    ):
        begun = time.monotonic()
        while time.monotonic() - begun < CHURN_SECONDS:
            batch = [f"churn{(born + at) % 100}" for at in range(PODS_A_SECOND)]
            made = "".join(
                f"link add {name} type veth peer name {name}x\nlink set {name} master cni0 up\n"
                for name in batch
            )
            node.run(["ip", "-batch", "-"], stdin=made)
            born += len(batch)
            time.sleep(max(0.0, begun + born / PODS_A_SECOND - time.monotonic()))
            node.run(["ip", "-batch", "-"], stdin="".join(f"link del {name}\n" for name in batch))
    log.info("%d pods came and went; %s %s %s", born, there, back, talk)
    assert (there.lost, back.lost) == (0, 0)
    live = {ifindex(node, pod.veth) for pod in node.pods}

    def ports() -> set[int]:
        with Map.open(node.map_path("fl_ports")) as entries:
            return {abi.unpack_u32(key) for key in entries.items()}

    eventually(lambda: ports() == live, "only living pods in fl_ports")


def test_an_address_that_moves_to_a_new_pod_never_reaches_the_old_one(lab: Lab) -> None:
    node, far = lab.node("n1"), lab.pod("n2p1")
    old = node.add_pod(name="n1p8")
    lab.wait_attached([node])
    eventually(lambda: ping(far, old.ip), "the pod answers")
    eventually(lambda: places(node).get(old.ip) == ifindex(node, old.veth), "the old place is known")
    # The old pod stays, deaf to ARP but with its link up: whatever comes to its veth now was sent wrongly.
    old.run(["ip", "addr", "flush", "dev", "eth0"])
    for file in node._address_files(old):
        file.unlink()  # host-local gives the address away, as CNI's would
    new = node.add_pod(name="n1p9", ip=old.ip)
    new.run([sys.executable, "-c", ANNOUNCE, str(new.ip)])
    before = received(old)
    eventually(lambda: ping(far, new.ip), "the new pod answers")

    def new_place_is_known() -> bool:
        return traffic.ping(far, new.ip, 20) == 20 and places(node).get(new.ip) == ifindex(node, new.veth)

    eventually(new_place_is_known, "the new place is known")
    settled = received(old)
    with stream(far, new) as delivery:
        pass
    assert delivery.lost == 0
    assert received(old) - settled < 0.1 * delivery.sent, "broadcasts and multicasts of the bridge at most"
    log.info("the old veth saw %d packets while the address moved", settled - before)
    node.remove_pod(new)
    node.run(["ip", "link", "del", old.veth])
    eventually(lambda: new.ip not in places(node), "a removed pod is forgotten")


ANNOUNCE = """
import socket, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("eth0", 0x806))
mac, ip = sock.getsockname()[4], socket.inet_aton(sys.argv[1])
arp = bytes.fromhex("0806 0001 0800 06 04 0001") + mac + ip + bytes(6) + ip
sock.send(bytes([255] * 6) + mac + arp)
"""
"""A gratuitous ARP request: what CNI's bridge plugin sends for a new pod."""


def received(pod: Pod) -> int:
    shown = json.loads(pod.run(["ip", "-json", "-stats", "link", "show", "dev", "eth0"]).stdout)[0]
    return int(shown["stats64"]["rx"]["packets"])


def test_a_pod_that_leaves_the_bridge_is_let_go(lab: Lab) -> None:
    node, far = lab.node("n1"), lab.pod("n2p1")
    pod = node.add_pod(name="n1p7")
    lab.wait_attached([node])
    pod.run([sys.executable, "-c", ANNOUNCE, str(pod.ip)])
    eventually(lambda: ping(far, pod.ip), "the pod answers")
    index = ifindex(node, pod.veth)
    node.run(["ip", "link", "add", "other0", "type", "bridge"])
    node.run(["ip", "link", "set", pod.veth, "master", "other0"])

    eventually(
        lambda: pod.veth not in {hook.device for hook in node.hooks()},
        "no program on a veth that is no pod of ours",
    )
    eventually(lambda: index not in places(node).values(), "its place is forgotten")
    node.run(["ip", "link", "set", pod.veth, "master", "cni0"])
    lab.wait_attached([node])
    eventually(lambda: ping(far, pod.ip), "it is a pod again")
    node.remove_pod(pod)
    node.run(["ip", "link", "del", "other0"])


def fast(lab: Lab) -> None:
    """Both pods reach each other, and BPF carries it."""
    node = lab.node("n1")
    eventually(lambda: ping(lab.pod("n1p1"), lab.pod("n2p1").ip), "pods reach each other", 10.0)
    before = reasons(node)[Hook.FROM_POD, Reason.FAST_VXLAN]
    eventually(
        lambda: (
            ping(lab.pod("n1p1"), lab.pod("n2p1").ip)
            and reasons(node)[Hook.FROM_POD, Reason.FAST_VXLAN] > before
        ),
        "carried by BPF",
        10.0,
    )


UPLINK = {
    "down and up": ["ip link set eth0 down", "sleep 0.3", "ip link set eth0 up"],
    "without its address for a while": [
        "ip addr flush dev eth0",
        "sleep 0.3",
        "ip addr add 192.168.64.1/24 brd + dev eth0",
    ],
    "renamed": ["ip link set eth0 down", "ip link set eth0 name wan0", "ip link set wan0 up"],
    "named back": ["ip link set wan0 down", "ip link set wan0 name eth0", "ip link set eth0 up"],
}


@pytest.mark.parametrize("change", UPLINK)
def test_the_uplink(lab: Lab, change: str) -> None:
    node = lab.node("n1")
    with chat(lab.pod("n1p2"), lab.pod("n2p2")) as talk:
        node.run(["sh", "-c", "; ".join(UPLINK[change])])
        fast(lab)
    log.info("uplink %s: longest TCP answer %.2f s", change, talk.longest)


def test_the_uplink_made_again(lab: Lab) -> None:
    """Another index, another MAC, the same name and address; the kernel takes flannel.1 away with the old."""
    node = lab.node("n1")
    node.run(["ip", "link", "del", "eth0"])
    lines = (
        f"ip -n {lab.spec.switch_ns} link add n1 type veth peer name eth0 netns {node.ns}",
        f"ip -n {lab.spec.switch_ns} link set n1 master br0 up",
        f"ip -n {node.ns} addr add 192.168.64.1/24 brd + dev eth0",
        f"ip -n {node.ns} link set eth0 up",
        f"ip -n {node.ns} route add default via 192.168.64.254",
    )
    for line in lines:
        run(line.split())
    fast(lab)
    assert "dev eth0" in node.run(["ip", "-d", "link", "show", "dev", "flannel.1"]).stdout
