"""Checks of what the daemon made: device, subnet.env, MTUs, programs, pods, and what the counters say."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_network

from flannel_ebpf.base.family import Family, Network
from flannel_ebpf.commands.diagnose.facts import Facts, Json, subnet_of
from flannel_ebpf.commands.diagnose.finding import Check, Finding
from flannel_ebpf.commands.diagnose.paths import within
from flannel_ebpf.commands.diagnose.probe_packets import overhead
from flannel_ebpf.desired.backends.vxlan import LEAST_MTU

_SUBNET = {Family.V4: "FLANNEL_SUBNET", Family.V6: "FLANNEL_IPV6_SUBNET"}
_BRIDGES = ("cni0", "docker0")
_BROKEN_OFFLOADS = {
    "vmxnet3": "it computes wrong checksums inside UDP tunnels in some versions of ESXi",
    "be2net": "it corrupts tunnel packets of other ports than the one it was told",
}
_DROPS = {
    "DROP_NOT_MEMBER": "tunnel packets from hosts that hold no lease",
    "DROP_PEER_SOURCE": "packets whose source is not in their sender's subnet",
    "DROP_POD_SOURCE": "packets that a pod sent from another pod's address",
    "DROP_BROKEN": "packets that were lost inside our programs: please report it",
}
_SOME = 100  # packets, before shares of them mean anything


def device(facts: Facts) -> Iterator[Finding]:
    """The overlay's device is there, up, and has the address that the lease tells others."""
    report = facts.report
    overlay = report.get("overlay")
    if not overlay:
        return
    link = facts.link(overlay)
    if not link:
        yield Finding(
            f"{overlay} is not there", "nothing goes to other nodes", "start the daemon: it makes it"
        )
        return
    if "UP" not in link.get("flags", ()):
        yield Finding(f"{overlay} is down", "nothing goes to other nodes", f"ip link set {overlay} up")
    told = (facts.source.lease.get("data") or {}).get("VtepMAC")
    if told and told.lower() != link["address"]:
        what = f"{overlay} has the address {link['address']}, our lease tells others {told}"
        effect = "nothing that other nodes send arrives; udev or NetworkManager changed it (flannel#1155)"
        yield Finding(what, effect, f"start the daemon; MACAddressPolicy=none for {overlay} in a .link file")
    place = facts.source.lease.get("public_ip")
    if place and place != report.get("public_ip"):
        yield Finding(f"our lease tells others {place}, this node is {report['public_ip']}",
                      "other nodes send to the wrong host", "two nodes with one address? restart the daemon")  # fmt: skip


def subnet_file(facts: Facts) -> Iterator[Finding]:
    """subnet.env says what is; container runtimes read nothing else."""
    if not facts.report:
        return
    told = facts.subnet_file
    subnet = subnet_of(facts.report)
    if not told:
        effect = "container runtimes do not start, or take another subnet"
        yield Finding("there is no subnet.env", effect, "see --subnet-file, and whether the daemon is ready")
    elif subnet and told.get(_SUBNET[facts.family]) != f"{subnet.network_address + 1}/{subnet.prefixlen}":
        what = f"subnet.env says {told.get(_SUBNET[facts.family])}, this node has {subnet}"
        yield Finding(
            what, "new pods get addresses that lead nowhere", "restart the daemon, then the runtime"
        )
    for name in _BRIDGES:
        here = [one["local"] for one in facts.link(name).get("addr_info", ())]
        yield from _bridge(facts, name, here)


def _bridge(facts: Facts, name: str, addresses: list[str]) -> Iterator[Finding]:
    """A bridge of pods is on this node's subnet; docker0 without containers may be anywhere."""
    subnet = subnet_of(facts.report)
    routes = [
        one["dst"] for one in facts.routes if one.get("dev") == name and one.get("protocol") == "kernel"
    ]
    local = [one for one in routes if "/" in one]
    if subnet and local and str(subnet) not in local and name == "docker0" and facts.link("docker0"):
        what = f"docker0 is on {local[0]}, not on this node's {subnet}"
        effect = "containers do not reach other nodes"
        yield Finding(what, effect, "install docker-flannel.conf (see operations.md), then restart Docker")


def mtu(facts: Facts) -> Iterator[Finding]:
    """Tunnel packets fit the uplink, pods' packets fit the tunnel."""
    uplink, overlay = (
        facts.link(facts.report.get("uplink", "")),
        facts.link(facts.report.get("overlay") or ""),
    )
    if not uplink:
        return
    room = uplink["mtu"] - overhead(facts.report["backend"], facts.family)
    if overlay and overlay["mtu"] > room:
        what = f"{overlay['ifname']} has MTU {overlay['mtu']}, {uplink['ifname']} carries {room}"
        yield Finding(
            what, "large packets are fragmented or lost", "set Backend.MTU, or raise the uplink's MTU"
        )
    if overlay and facts.family is Family.V6 and overlay["mtu"] < LEAST_MTU:
        what = f"{overlay['ifname']} has MTU {overlay['mtu']}, IPv6 needs {LEAST_MTU}"
        do = f"ip link set {overlay['ifname']} mtu {room}, and restart the daemon"
        yield Finding(what, "the kernel has taken IPv6 off it: nothing goes to other nodes", do)
    told = facts.subnet_file.get("FLANNEL_MTU")
    for name in _BRIDGES:
        bridge = facts.link(name)
        if bridge and told and bridge["mtu"] > int(told):
            what = f"{name} has MTU {bridge['mtu']}, the overlay carries {told}"
            effect = "large packets of pods are lost: connections open and then hang"
            yield Finding(
                what,
                effect,
                f"take FLANNEL_MTU of subnet.env for the runtime, or ip link set {name} mtu {told}",
            )


def offloads(facts: Facts) -> Iterator[Finding]:
    """The uplink's driver is not one that breaks tunnel packets."""
    if facts.driver in _BROKEN_OFFLOADS and facts.report.get("overlay"):
        uplink = facts.report["uplink"]
        do = f"ethtool -K {uplink} tx-udp_tnl-segmentation off tx-udp_tnl-csum-segmentation off, if packets are lost"
        what = f"{uplink} is driven by {facts.driver}: {_BROKEN_OFFLOADS[facts.driver]}"
        yield Finding(what, "TCP between nodes may hang (flannel#1279)", do, "note")


def programs(facts: Facts) -> Iterator[Finding]:
    """Programs stand where the daemon says that they do."""
    datapath = facts.report.get("datapath", {})
    if datapath.get("why_not"):
        yield Finding(
            f"no BPF: {datapath['why_not']}", "packets take the kernel path, slower", "mend that, restart"
        )
    if not datapath.get("accelerated"):
        return
    on = {(hook.device, hook.direction) for hook in facts.hooks}
    uplink = facts.report["uplink"]
    if (uplink, "ingress") not in on:
        what = f"no program of ours stands on {uplink}, though the daemon attached one"
        yield Finding(what, "packets take the kernel path, slower", "restart the daemon; who removed it?")


def pods(facts: Facts) -> Iterator[Finding]:
    """Pods that are not accelerated are named with the reason."""
    for pod in facts.pods:
        if pod["path"] == "kernel":
            what = f"pod {pod['ip']} on {pod['device'] or 'no device'} takes the kernel path: {pod['why']}"
            yield Finding(what, "correct, and slower", "nothing, if that is wanted", "note")


def peers(facts: Facts) -> Iterator[Finding]:
    """The uplink's neighbours answer, and no route of others lies inside the overlay's network."""
    gone = [one["dst"] for one in facts.neighbours if "FAILED" in one.get("state", ())]
    for address in gone[:4]:
        asked = "ARP" if facts.family is Family.V4 else "neighbour discovery"
        what = f"{address} does not answer {asked} on {facts.report['uplink']}"
        yield Finding(what, "it cannot be reached, if it is a peer", "flannel-ebpf probe", "note")
    network = facts.report.get("network")
    if not network:
        return
    for route in facts.routes:
        if _foreign(route, ip_network(network), facts):
            what = f"the route {route['dst']} dev {route.get('dev')} lies inside {network} and is not ours"
            yield Finding(what, "packets for those addresses go there", "move that network, or ours")


def _foreign(route: Json, network: Network, facts: Facts) -> bool:
    """Say whether a route leads part of the overlay elsewhere: neither ours nor of the local subnet."""
    try:
        inside = ip_network(route["dst"])
    except ValueError:
        return False
    subnet = subnet_of(facts.report)
    ours = route.get("protocol") == "251" or route.get("dev") == facts.report.get("overlay")
    local = subnet is not None and within(inside, subnet)
    plain = route.get("table", "main") == "main" and route.get("type", "unicast") == "unicast"
    return plain and within(inside, network) and inside.prefixlen > 0 and not ours and not local


def counters(facts: Facts) -> Iterator[Finding]:
    """The programs' counters show no drops, and some packets on the fast path."""
    for name, meaning in _DROPS.items():
        packets = sum(facts.reasons.get(name, {}).values())
        if packets:
            do = "flannel-ebpf monitor shows them" if name != "DROP_BROKEN" else "flannel-ebpf dump"
            yield Finding(f"{packets} packets were dropped: {meaning}", "they did not arrive", do, "note")
    fast = sum(
        sum(facts.reasons.get(name, {}).values()) for name in ("FAST_VXLAN", "FAST_DIRECT", "FAST_UDP")
    )
    changed = sum(facts.reasons.get("LEARN_CHANGED", {}).values())
    if changed > _SOME and fast < changed / 100:
        what = f"{changed} packets were changed between pod and uplink, {fast} went by BPF"
        effect = "nothing, or nearly, is accelerated: somebody translates addresses between nodes"
        yield Finding(what, effect, "see `firewall` above; flannel-ebpf flows")


CHECKS: dict[str, Check] = {
    "device": device,
    "subnet.env": subnet_file,
    "mtu": mtu,
    "offloads": offloads,
    "programs": programs,
    "pods": pods,
    "peers": peers,
    "counters": counters,
}
