"""Pods that are more than one address behind one veth, and bridges that do not know where a pod is."""

from __future__ import annotations

import socket

import pytest

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.host import Host
from tests.netns.neighbours.beside import Beside, Outcome, ask, ask_tcp, commands, patience
from tests.netns.traffic import delivered, ping, udp

_IP_PKTINFO = 8


@pytest.fixture(autouse=True)
def known(beside: Beside) -> None:
    """Programs know where every pod lives."""
    for pod in beside.flows.node("n1").pods:
        assert delivered(beside.flows.pod("n2p1"), pod, 40) == 40


def test_a_service_of_several_pods_without_translation(beside: Beside) -> None:
    """LVS-DR: one pod is asked at the address, another answers from it."""

    def scenario(lab: Lab) -> Outcome:
        node, far = lab.node("n1"), lab.pod("n2p1")
        director, real = node.pods[0], node.pods[1]
        service = str(node.subnet[200])
        real.run(["sysctl", "-qw", "net.ipv4.conf.all.arp_ignore=1", "net.ipv4.conf.all.arp_announce=2"])
        director.run(["ip", "address", "add", f"{service}/32", "dev", "eth0"])
        real.run(["ip", "address", "add", f"{service}/32", "dev", "lo"])
        info = bytes(4) + socket.inet_aton(service) + bytes(4)
        answered = 0
        try:
            with udp(far) as asks, udp(director, 5300) as hears, udp(real) as answers:
                for sock in (asks, hears):
                    sock.settimeout(10 * patience())
                for _ in range(80):
                    asks.sendto(b"?", (service, 5300))
                    try:
                        _, asker = hears.recvfrom(100)
                        answers.sendmsg([b"!"], [(socket.SOL_IP, _IP_PKTINFO, info)], 0, asker)
                        answered += asks.recvfrom(100)[1][0] == service
                    except TimeoutError:
                        break
        finally:
            director.run(["ip", "address", "del", f"{service}/32", "dev", "eth0"])
            real.run(["ip", "address", "del", f"{service}/32", "dev", "lo"])
        return {"answered": answered}

    assert beside.same(scenario, carried=False) == {"answered": 80}


def test_a_pod_that_routes_for_another(beside: Beside) -> None:
    """A gateway pod: TCP of the other pod goes out through it, and comes in straight."""

    def scenario(lab: Lab) -> Outcome:
        node, far = lab.node("n1"), lab.pod("n2p1")
        inside, router = node.pods[0], node.pods[1]
        router.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.send_redirects=0"])
        inside.run(["ip", "route", "add", str(far.ip), "via", str(router.ip)])
        try:
            return {"tcp": [ask_tcp(inside, far) for _ in range(3)]}
        finally:
            inside.run(["ip", "route", "del", str(far.ip)])

    assert beside.same(scenario, carried=False) == {"tcp": [60] * 3}


def flooded(lab: Lab, pod: Host, far: Host) -> int:
    """Ask a pod whose MAC the bridge forgets again and again; return how often it answered."""
    node = lab.node("n1")
    veth = next(one.veth for one in node.pods if one.name == pod.name)
    mac = pod.run(["cat", "/sys/class/net/eth0/address"], check=False).stdout.strip()
    answered = 0
    with udp(far) as near, udp(pod) as there:
        to = (str(pod.ip), there.getsockname()[1])
        for _ in range(12):
            node.run(["bridge", "fdb", "del", mac, "dev", veth, "master"], check=False)
            near.settimeout(patience())
            for _ in range(5):  # nobody answers: the bridge floods until the pod speaks
                near.sendto(b"?", to)
            for _ in range(5):
                there.recv(10)
            answered += ask(lab, near, to, there, 10).answered
    return answered


def test_a_flood_teaches_no_wrong_place(beside: Beside) -> None:
    """The pod's own veth is shaped, so that programs see the flood at other pods' veths alone."""

    def scenario(lab: Lab) -> Outcome:
        node, far = lab.node("n1"), lab.pod("n2p1")
        pod = node.pods[0]
        shape = f"tc qdisc add dev {pod.veth} root tbf rate 400mbit burst 64kb latency 50ms"
        with commands([node], [shape], [f"tc qdisc del dev {pod.veth} root"]):
            answered = flooded(lab, pod, far)
        return {"answered": answered, "afterwards": ping(pod, far.ip, 40, patience=1)}

    assert beside.same(scenario, carried=False) == {"answered": 120, "afterwards": 40}


def test_an_address_that_moves_to_another_pod(beside: Beside) -> None:
    """keepalived: the new holder says so by gratuitous ARP, and is asked from then on."""
    announce = """
import socket, struct, sys
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0806)
sock.bind(("eth0", 0x0806))
mac, ip = sock.getsockname()[4], socket.inet_aton(sys.argv[1])
arp = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + mac + ip + bytes(6) + ip
for _ in range(3):
    sock.send(b"\\xff" * 6 + mac + b"\\x08\\x06" + arp)
"""

    def scenario(lab: Lab) -> Outcome:
        node, far = lab.node("n1"), lab.pod("n2p1")
        service = str(node.subnet[201])
        found = []
        with udp(far) as near:
            for holder in (node.pods[0], node.pods[1], node.pods[0]):
                holder.run(["ip", "address", "add", f"{service}/32", "dev", "eth0"])
                holder.run(["python3", "-IS", "-c", announce, service])
                with udp(holder, 5300) as there:
                    found.append(ask(lab, near, (service, 5300), there, 40).answered)
                holder.run(["ip", "address", "del", f"{service}/32", "dev", "eth0"])
        return {"answered": found}

    assert beside.same(scenario) == {"answered": [40, 40, 40]}
