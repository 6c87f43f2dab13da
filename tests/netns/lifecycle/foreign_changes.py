"""Foreign changes to a node, and a node's state as it is seen from outside."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from ipaddress import IPv4Address

from flannel_ebpf.base.errors import BpfError, LabError
from flannel_ebpf.base.family import Family
from flannel_ebpf.contract import abi
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, Node
from flannel_ebpf.lab.stock import DEVICES
from tests.netns import tcx_stranger
from tests.polls import unchanging

EVENT, SILENT = 5.0, 15.0
"""Seconds within which a fault heals: one that the kernel tells of, and one that a periodic pass finds.

On an idle machine it takes a fifth of that.
"""


_DATA = {Family.V4: "BackendData", Family.V6: "BackendV6Data"}

_OF_A_FAMILY = (
    "ip -d -o link show dev {device}",
    "ip -o -{family} address show dev {device} scope global",
    "ip -{family} route show | grep -v fe80:",
    "ip -{family} neigh show dev {device} nud permanent",
    "bridge fdb show dev {device}",
    "[ {family} = 4 ] && iptables-save || ip6tables-save",
    "sysctl net.ipv6.conf.$(echo {device} | tr . /).accept_ra",
)


@dataclass(frozen=True)
class Fault:
    """A foreign change and how long it may last.

    In the shell words {near} is the node's subnet, {far} the peer's, {vtep} its address, {mac} its VTEP, all
    of the family that the fault is about; {headroom} the device that gives pods' packets headroom, {pins} the
    pin folder, {map} the folder of pinned maps, {env} subnet.env, {tcx} what changes tcx hooks.
    """

    command: str
    within: float = EVENT


FAULTS = {
    "device deleted": Fault("ip link del flannel.1"),
    "device down": Fault("ip link set flannel.1 down"),
    "device's MAC": Fault("ip link set flannel.1 address 02:00:00:00:00:99"),
    "device's MTU": Fault("ip link set flannel.1 mtu 1300"),
    "device made anew, wrong": Fault(
        # once more when the daemon was faster than the shell between the two
        "until ip link del flannel.1;"
        " ip link add flannel.1 type vxlan id 1 dev eth0 dstport 4789 local {own}; do :; done"
    ),
    "address deleted": Fault("ip addr flush dev flannel.1"),
    "address added": Fault("ip addr add 10.1.200.1/32 dev flannel.1"),
    "route deleted": Fault("ip route del {far}"),
    "route altered": Fault("ip route replace {far} via 192.168.64.254"),
    "blackhole route deleted": Fault("ip route del blackhole {near}"),
    "stale route": Fault("ip route add 10.1.250.0/24 via 10.1.250.0 dev flannel.1 onlink proto 251"),
    "routes flushed": Fault("ip route flush proto 251"),
    "neighbour deleted": Fault("ip neigh del {vtep} dev flannel.1"),
    "neighbour altered": Fault(
        "ip neigh replace {vtep} lladdr 02:00:00:00:00:77 dev flannel.1 nud permanent"
    ),
    "FDB entry deleted": Fault("bridge fdb del {mac} dev flannel.1"),
    "FDB entry altered": Fault("bridge fdb replace {mac} dev flannel.1 dst 192.168.64.77 self permanent"),
    "stale FDB entry": Fault(
        "bridge fdb add 02:00:00:00:00:55 dev flannel.1 dst 192.168.64.55 self permanent"
    ),
    "pod's program detached": Fault("{tcx} detach vethn1p1 ingress", SILENT),
    "uplink's program detached": Fault("{tcx} detach eth0 ingress", SILENT),
    "overlay's program detached": Fault("{tcx} detach flannel.1 egress", SILENT),
    "idle clsact on the uplink": Fault("tc qdisc add dev eth0 clsact; tc qdisc del dev eth0 clsact"),
    "XDP off": Fault("ip link set eth0 xdpgeneric off"),
    "headroom's port deleted": Fault("ip link del {headroom}"),
    "headroom's port up": Fault("ip link set {headroom} up"),
    "pins removed": Fault("find {pins} -type f -delete", SILENT),
    "pin folders removed": Fault("rm -r {pins}/*", SILENT),
    "peer's map entry deleted": Fault("bpftool map delete pinned {map}/fl_peers key {key}", SILENT),
    "peer's map entry altered": Fault(
        "bpftool map update pinned {map}/fl_peers key {key} value {value}", SILENT
    ),
    "stale map entry": Fault("bpftool map update pinned {map}/fl_vteps key 9 9 9 9 value {key}", SILENT),
    "conntrack strict": Fault("sysctl -w net.netfilter.nf_conntrack_tcp_be_liberal=0", SILENT),
    "accept_ra": Fault("sysctl -w net.ipv6.conf.flannel/1.accept_ra=1", SILENT),
    "forward rules flushed": Fault("iptables -F FLANNEL-FWD"),
    "jump deleted": Fault("iptables -t nat -F POSTROUTING"),
    "rule altered": Fault("iptables -t nat -R FLANNEL-POSTRTG 1 -j RETURN"),
    "all rules flushed": Fault("nft flush ruleset"),
    "subnet.env deleted": Fault("rm {env}", SILENT),
    "subnet.env altered": Fault("echo FLANNEL_MTU=9 > {env}", SILENT),
}

CLSACT_FAULTS = {
    "filter deleted": Fault("tc filter del dev vethn1p1 ingress pref 251"),
    "uplink's clsact deleted": Fault("tc qdisc del dev eth0 clsact"),
    "pod's clsact deleted": Fault("tc qdisc del dev vethn1p1 clsact"),
    "device deleted": FAULTS["device deleted"],
    "pin folders removed": FAULTS["pin folders removed"],
}
"""For a node with --attach=clsact."""


FAULTS_V6 = {
    "device deleted": Fault("ip link del flannel-v6.1"),
    "device down": Fault("ip link set flannel-v6.1 down"),
    "device's MAC": Fault("ip link set flannel-v6.1 address 02:00:00:00:00:99"),
    "device's MTU": Fault("ip link set flannel-v6.1 mtu 1300"),
    "device's MTU too small for IPv6": Fault("ip link set flannel-v6.1 mtu 1000"),
    "IPv6 off on the device": Fault("sysctl -w net.ipv6.conf.flannel-v6/1.disable_ipv6=1"),
    "device of IPv4 deleted": Fault("ip link del flannel.1"),
    "address deleted": Fault("ip -6 addr del {own_vtep}/128 dev flannel-v6.1"),
    "addresses flushed": Fault("ip -6 addr flush dev flannel-v6.1"),
    "address added": Fault("ip addr add fd10:1:0:fff::/128 dev flannel-v6.1"),
    "route deleted": Fault("ip -6 route del {far}"),
    "route altered": Fault("ip -6 route replace {far} via fd00:64::fe metric 1024"),
    "blackhole route deleted": Fault("ip -6 route del {near} dev lo"),
    "stale route": Fault(
        "ip route add fd10:1:0:ffe::/64 via fd10:1:0:ffe:: dev flannel-v6.1 onlink proto 251"
    ),
    "routes flushed": Fault("ip -6 route flush proto 251"),
    "neighbour deleted": Fault("ip neigh del {vtep} dev flannel-v6.1"),
    "neighbour altered": Fault(
        "ip neigh replace {vtep} lladdr 02:00:00:00:00:77 dev flannel-v6.1 nud permanent"
    ),
    "FDB entry deleted": Fault("bridge fdb del {mac} dev flannel-v6.1"),
    "FDB entry altered": Fault("bridge fdb replace {mac} dev flannel-v6.1 dst fd00:64::77 self permanent"),
    "stale FDB entry": Fault(
        "bridge fdb add 02:00:00:00:00:55 dev flannel-v6.1 dst fd00:64::55 self permanent"
    ),
    "accept_ra": Fault("sysctl -w net.ipv6.conf.flannel-v6/1.accept_ra=1", SILENT),
    "forward rules flushed": Fault("ip6tables -F FLANNEL-FWD"),
    "jump deleted": Fault("ip6tables -t nat -F POSTROUTING"),
    "rule altered": Fault("ip6tables -t nat -R FLANNEL-POSTRTG 1 -j RETURN"),
    "all rules flushed": Fault("nft flush ruleset"),
}
"""For a node with pods of both families."""


def state(node: Node) -> str:
    """Everything of ours that is seen from outside; two equal texts are two equal nodes."""
    commands = [
        *(
            line.format(device=DEVICES[family], family=family.value)
            for family in node.spec.families
            for line in _OF_A_FAMILY
        ),
        "ip -d -o link show dev eth0",
        f"ip -d -o link show dev {headroom_port(node)}",
        "sysctl net.netfilter.nf_conntrack_tcp_be_liberal",
        f"find {node.pin_root} -type f",
        f"cat {node.subnet_file}",
    ]
    lines = node.run(["sh", "-c", "; ".join(commands)], check=False).stdout.splitlines()
    lines += [f"{hook.program} at {hook.via} {hook.direction} of {hook.device}" for hook in node.hooks()]
    for name in ("fl_peers", "fl_vteps", "fl_ports"):
        with suppress(BpfError, LabError), Map.open(node.map_path(name)) as entries:
            lines += [f"{name} {key.hex()} {_value(name, value)}" for key, value in entries.items().items()]
    return "\n".join(sorted(filter(None, map(_essence, lines))))


def quiet_state(node: Node) -> str:
    """Return the node's state once several passes have found nothing to do."""
    return unchanging(lambda: state(node), f"{node.name}'s state")


def difference(wanted: str, found: str) -> str:
    """Return the lines that are in one of two states only, as often as they are."""
    before, after = Counter(wanted.splitlines()), Counter(found.splitlines())
    return "\n".join([*(f"- {line}" for line in before - after), *(f"+ {line}" for line in after - before)])


def headroom_port(node: Node) -> str:
    """Return the name of the device that gives the packets of the pods at cni0 headroom."""
    bridge = node.run(["ip", "-o", "link", "show", "cni0"]).stdout.partition(":")[0]
    return contents.headroom_name(int(bridge))


def _value(name: str, value: bytes) -> str:
    planned = abi.planned_part(name, value)
    return str(replace(abi.Peer.unpack(planned), slot=0)) if name == "fl_peers" else planned.hex()


def _essence(line: str) -> str:
    """Take out what may differ without a difference: a new device's or program's number, counters."""
    words = line.split()
    if not words or line.startswith(("#", ":")):
        return ""
    text = " ".join(words[1:] if words[0].rstrip(":").isdigit() else words)
    return re.sub(r"(?<!vxlan )\b(\w*id|load_time) \d+", "N", text)


def filled_in(command: str, node: Node, other: Node, family: Family = Family.V4) -> str:
    """Return the fault's command for this node."""
    far = other.subnet_of(family)
    with Map.open(node.map_path("fl_peers")) as peers:
        [(key, value)] = peers.items().items()
    broken = replace(abi.Peer.unpack(value), public_ip=IPv4Address("192.168.64.77")).pack()
    return command.format(
        near=node.subnet_of(family),
        far=far,
        vtep=far.network_address,
        own=node.at(family),
        own_vtep=node.subnet_of(family).network_address,
        mac=Lab.open(node.spec.name).leases()[far][_DATA[family]]["VtepMAC"],
        headroom=headroom_port(node),
        pins=node.pin_root,
        map=node.map_path("fl_peers").parent,
        env=node.subnet_file,
        tcx=" ".join(tcx_stranger.COMMAND),
        key="hex " + key.hex(" "),
        value="hex " + broken.hex(" "),
    )
