"""What `doctor` makes of rules, devices and counters: texts as real hosts have them."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import pytest

from flannel_ebpf.commands.diagnose.doctor import examine
from flannel_ebpf.commands.diagnose.facts import Facts, Source
from flannel_ebpf.commands.diagnose.networks import Here
from flannel_ebpf.kernel.hooks.standing import Hook

REPORT: dict[str, Any] = {
    "network": "10.1.0.0/16",
    "backend": "vxlan",
    "overlay": "flannel.1",
    "uplink": "eth0",
    "public_ip": "192.0.2.1",
    "subnet": "10.1.5.0/24",
    "datapath": {"accelerated": True, "attach": "tcx", "why_not": ""},
    "options": {"fastpath": "flows", "ip_masq": True},
}
VXLAN = {
    "ifname": "flannel.1", "mtu": 1450, "address": "02:00:00:00:00:01", "flags": ["UP"],
    "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 1, "port": 8472}},
}  # fmt: skip
GOOD = Facts(
    features=("redirect_neigh", "tcx"),
    here=Here(IPv4Network("10.1.0.0/16"), REPORT, pid=7),
    sysctls={"net/ipv4/ip_forward": "1", "net/netfilter/nf_conntrack_tcp_be_liberal": "1"},
    links=({"ifname": "eth0", "mtu": 1500, "address": "02:00:00:00:00:02"}, VXLAN),
    routes=({"dst": "10.1.6.0/24", "dev": "flannel.1", "protocol": "251"},),
    iptables=":FORWARD DROP [0:0]\n-A FORWARD -m comment --comment flanneld -j FLANNEL-FWD\n",
    hooks=(Hook("eth0", "ingress", "tcx", "fl_from_peer", 1),),
    source=Source(asked=True, lease={"public_ip": "192.0.2.1", "data": {"VtepMAC": "02:00:00:00:00:01"}}),
    subnet_file={"FLANNEL_SUBNET": "10.1.5.1/24", "FLANNEL_MTU": "1450"},
)


def reporting(**told: Any) -> Here:
    return Here(IPv4Network("10.1.0.0/16"), REPORT | told, pid=7)


def found(facts: Facts) -> list[tuple[str, str]]:
    return [(name, one.what) for name, findings in examine(facts).items() for one in findings]


def test_a_healthy_host_has_nothing() -> None:
    assert found(GOOD) == []


def test_a_host_without_anything_is_told_how_to_start() -> None:
    assert [name for name, _ in found(Facts(bpf_error="no bpffs", root=True))] == ["kernel", "daemon"]


@pytest.mark.parametrize(
    ("left", "effect"),
    [
        (200, "its programs go on with what they know for 200 s, and drop what they know nothing of"),
        (0, "its programs stand aside and the kernel carries all"),
        (None, "its programs go on with what they know for ever"),
    ],
)
def test_programs_without_their_daemon_are_named(left: int | None, effect: str) -> None:
    silent = replace(GOOD, here=replace(GOOD.here, pid=0), stand_aside_in=left)  # type: ignore[type-var]
    [stopped] = examine(silent)["daemon"]
    assert (stopped.what, stopped.only_stopped) == ("the daemon does not run", True)
    assert stopped.effect.startswith(effect)
    _, beside = examine(replace(silent, processes=("flanneld",)))["daemon"]
    assert "programs of a flannel-ebpf that ended without `down` stand before it" in beside.what
    assert (beside.effect, beside.do, beside.only_stopped) == (stopped.effect, "flannel-ebpf down", False)
    assert len(examine(replace(silent, processes=("flanneld",), hooks=()))["daemon"]) == 1


DOCKER_MASQUERADE = "-A POSTROUTING -s 10.1.5.0/24 ! -o docker0 -j MASQUERADE\n"
DOCKER_28 = "-A PREROUTING -d 10.1.5.2/32 ! -i docker0 -j DROP\n"
OURS_FIRST = "-A POSTROUTING -m comment --comment flanneld -j FLANNEL-POSTRTG\n"
PORTMAP = "-A CNI-HOSTPORT-MASQ -m mark --mark 0x2000/0x2000 -j MASQUERADE\n"


@pytest.mark.parametrize(
    ("rules", "check", "says"),
    [
        (DOCKER_MASQUERADE, "masquerade", "Docker masquerades what pods send to other nodes"),
        ("-A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE\n", "masquerade", "a rule masquerades"),
        (DOCKER_28, "docker", "Docker drops packets from other hosts"),
        ("-A INPUT -p udp -m udp --dport 8472 -j DROP\n", "port", "a rule drops the tunnel's packets"),
        ("-A INPUT -p udp -m multiport --dports 53,8472 -j REJECT\n", "port", "a rule drops the tunnel's"),
        ("-A FORWARD -s 10.1.0.0/16 -j DROP\n", "forward", "a rule drops forwarded packets"),
        ("-A DOCKER-USER -d 10.1.7.0/24 -j DROP\n", "forward", "a rule drops forwarded packets"),
    ],
)
def test_a_rule_in_the_way_is_named(rules: str, check: str, says: str) -> None:
    ((name, what),) = found(replace(GOOD, iptables=GOOD.iptables + rules))
    assert (name, what.startswith(says)) == (check, True), what


VXLAN6 = {
    **VXLAN,
    "ifname": "flannel-v6.1",
    "mtu": 1430,
    "linkinfo": {"info_kind": "vxlan", "info_data": {"id": 1, "port": 8472, "local6": "fd00::1"}},
}
VIEW6 = replace(
    GOOD,
    here=Here(
        IPv6Network("fd10:1::/48"),
        REPORT
        | {
            "network": "fd10:1::/48",
            "overlay": "flannel-v6.1",
            "public_ip": "fd00::1",
            "subnet": "fd10:1:0:5::/64",
        },
        pid=7,
    ),
    sysctls={**GOOD.sysctls, "net/ipv6/conf/all/forwarding": "1"},
    links=(*GOOD.links, VXLAN6),
    routes=({"dst": "fd10:1:0:6::/64", "dev": "flannel-v6.1", "protocol": "251"}, {"dst": "default"}),
    source=Source(asked=True, lease={"public_ip": "fd00::1", "data": {"VtepMAC": VXLAN["address"]}}),
    subnet_file={"FLANNEL_IPV6_SUBNET": "fd10:1:0:5::1/64", "FLANNEL_MTU": "1430"},
)


def test_the_same_is_checked_of_ipv6() -> None:
    assert found(VIEW6) == []


@pytest.mark.parametrize(
    ("changes", "check", "says"),
    [
        ({"iptables": GOOD.iptables + "-A INPUT -p udp -m udp --dport 8472 -j DROP\n"}, "port",
         "a rule drops the tunnel's packets: ip6tables -A INPUT"),
        ({"iptables": ":FORWARD DROP [0:0]\n"}, "forward", "FORWARD of ip6tables drops by default"),
        ({"iptables": GOOD.iptables + "-A FORWARD -s fd10:1:0:7::/64 -j DROP\n"}, "forward",
         "a rule drops forwarded packets: ip6tables"),
        ({"iptables": GOOD.iptables + "-A POSTROUTING -s fd10:1::/32 -j MASQUERADE\n"}, "masquerade",
         "a rule masquerades"),
        ({"sysctls": {**VIEW6.sysctls, "net/ipv6/conf/all/forwarding": "0"}}, "sysctls",
         "net.ipv6.conf.all.forwarding is 0"),
        ({"sysctls": {**VIEW6.sysctls, "net/ipv6/conf/eth0/disable_ipv6": "1"}}, "sysctls",
         "IPv6 is off on eth0"),
        ({"links": (GOOD.links[0], {**VXLAN6, "mtu": 1200})}, "mtu",
         "flannel-v6.1 has MTU 1200, IPv6 needs 1280"),
        ({"links": (GOOD.links[0], {**VXLAN6, "mtu": 1450})}, "mtu",
         "flannel-v6.1 has MTU 1450, eth0 carries 1430"),
        ({"routes": ({"dst": "fd10:1:0:80::/57", "dev": "eth0"},)}, "peers", "the route fd10:1:0:80::/57"),
        ({"neighbours": ({"dst": "fd00::9", "state": ["FAILED"]},)}, "peers",
         "fd00::9 does not answer neighbour discovery"),
        ({"subnet_file": {"FLANNEL_SUBNET": "10.1.5.1/24"}}, "subnet.env", "subnet.env says None"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_ipv6_alone_is_found_once(changes: dict[str, Any], check: str, says: str) -> None:
    problems = examine(GOOD, replace(VIEW6, **changes))
    ((name, what),) = [(name, one.what) for name, findings in problems.items() for one in findings]
    assert (name, what.startswith(says)) == (check, True), what


def test_what_both_families_see_is_said_once() -> None:
    views = [replace(one, clock_synchronised=False) for one in (GOOD, VIEW6)]
    assert [len(findings) for findings in examine(*views).values() if findings] == [1]


@pytest.mark.parametrize(
    "rules",
    [
        OURS_FIRST + DOCKER_MASQUERADE,
        "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE\n",
        "-A PREROUTING -d 172.17.0.2/32 ! -i docker0 -j DROP\n",
        "-A INPUT -p udp -m udp --dport 8473 -j DROP\n",
        "-A INPUT -p udp -m udp --dport 8472 -j ACCEPT\n",
        "-A FORWARD -s 192.0.2.0/24 -j DROP\n",
        PORTMAP,
        "-A X -j MARK --set-xmark 0x0/0xffffffff\n",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN\n",
    ],
)
def test_rules_of_others_that_do_not_concern_us_are_left_alone(rules: str) -> None:
    assert found(replace(GOOD, iptables=GOOD.iptables + rules)) == []


def test_an_accept_of_nftables_does_not_override_a_drop_of_iptables() -> None:
    chain = {
        "family": "ip",
        "table": "flannel-ipv4",
        "name": "forward",
        "hook": "forward",
        "policy": "accept",
    }
    facts = replace(GOOD, iptables=":FORWARD DROP [0:0]\n", nft=({"chain": chain},))
    ((name, what),) = found(facts)
    assert name == "forward"
    assert "cannot override another table's drop" in what


def test_a_drop_of_nftables_is_found() -> None:
    chain = {"family": "inet", "table": "fw", "name": "in", "hook": "input", "policy": "accept"}
    left = {"payload": {"protocol": "udp", "field": "dport"}}
    rule = {
        "family": "inet", "table": "fw", "chain": "in", "handle": 4,
        "expr": [{"match": {"op": "==", "left": left, "right": {"set": [53, 8472]}}}, {"drop": None}],
    }  # fmt: skip
    assert found(replace(GOOD, nft=({"chain": chain}, {"rule": rule}))) == [
        ("port", "a rule of nftables drops UDP port 8472, in inet fw in, handle 4")
    ]


def link(**changes: Any) -> dict[str, Any]:
    return {**VXLAN, **changes}


@pytest.mark.parametrize(
    ("changes", "check", "says"),
    [
        ({"sysctls": {"net/ipv4/ip_forward": "0"}}, "sysctls", "net.ipv4.ip_forward is 0"),
        ({"sysctls": {"net/netfilter/nf_conntrack_tcp_be_liberal": "0"}}, "sysctls", "be_liberal is 0"),
        ({"sysctls": {"net/netfilter/nf_conntrack_count": "95", "net/netfilter/nf_conntrack_max": "100"}},
         "sysctls", "95 of 100"),
        ({"here": replace(GOOD.here, pid=0)}, "daemon", "does not run"),  # type: ignore[type-var]  # GOOD has one
        ({"processes": ["flanneld"]}, "daemon", "flanneld runs here too"),
        ({"source": Source(asked=True, error="connection refused")}, "leases", "connection refused"),
        ({"source": Source(asked=True)}, "leases", "etcd has no lease of 10.1.5.0/24"),
        ({"links": (GOOD.links[0],)}, "device", "flannel.1 is not there"),
        ({"links": (GOOD.links[0], link(address="aa:00:00:00:00:01"))}, "device", "has the address aa:"),
        ({"links": (GOOD.links[0], link(mtu=1500))}, "mtu", "has MTU 1500, eth0 carries 1450"),
        ({"links": (*GOOD.links, {"ifname": "cni0", "mtu": 1500})}, "mtu", "cni0 has MTU 1500"),
        ({"links": (*GOOD.links, link(ifname="vx7"))}, "port", "vx7 has our VNI and UDP port 8472"),
        ({"subnet_file": {}}, "subnet.env", "there is no subnet.env"),
        ({"subnet_file": {"FLANNEL_SUBNET": "10.1.9.1/24"}}, "subnet.env", "this node has 10.1.5.0/24"),
        ({"hooks": ()}, "programs", "no program of ours stands on eth0"),
        ({"driver": "vmxnet3"}, "offloads", "vmxnet3"),
        ({"clock_synchronised": False}, "clock", "nothing synchronises the clock"),
        ({"reasons": {"DROP_NOT_MEMBER": {"from_peer": 3}}}, "counters", "3 packets were dropped"),
        ({"reasons": {"LEARN_CHANGED": {"to_peer": 5000}}}, "counters", "5000 packets were changed"),
        ({"routes": ({"dst": "10.1.8.0/22", "dev": "tun0", "protocol": "boot"},)}, "peers", "10.1.8.0/22"),
        ({"sockets": "UNCONN 0 0 0.0.0.0:8472 0.0.0.0:* users:((\"nc\",pid=9,fd=3))"}, "port", "nc"),
        ({"pods": ({"ip": "10.1.5.2", "device": "v", "path": "kernel", "why": "shaped"},)}, "pods", "shaped"),
        ({"here": reporting(guards=[{"addresses": "10.1.5.2", "level": "flows", "why": "a rule"}])},
         "guards", "10.1.5.2 is carried by flow: a rule"),
        ({"here": reporting(guards=[{"addresses": "10.1.5.2", "level": "kernel", "why": "limit"}])},
         "guards", "10.1.5.2 is carried by kernel: limit"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_found(changes: dict[str, Any], check: str, says: str) -> None:
    findings = found(replace(GOOD, **changes))
    assert (check, True) in [(name, says in what) for name, what in findings], findings
    assert {name for name, _ in findings} == {check}
