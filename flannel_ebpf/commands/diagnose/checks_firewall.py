"""Checks of everybody's firewall rules: what drops, masquerades or hides the overlay's packets.

Rules are read as `iptables-save` and `nft -j` print them: but for `guards`, this is advice, no proof. What
netfilter decides about a packet, the programs leave to it in any case.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from flannel_ebpf.base.family import Family, Network
from flannel_ebpf.commands.diagnose.facts import Facts, Json, subnet_of
from flannel_ebpf.commands.diagnose.finding import Check, Finding

_PORTS = {"vxlan": 8472, "udp": 8285}
_DROPS = ("DROP", "REJECT")
_TOOLS = {Family.V4: "iptables", Family.V6: "ip6tables"}
_NFT = {Family.V4: "ip", Family.V6: "ip6"}
_SHOWN = 5


def port(facts: Facts) -> Iterator[Finding]:
    """The tunnel's UDP port is ours, and no rule drops what comes to it."""
    number = _tunnel_port(facts)
    if not number:
        return
    for line in facts.sockets.splitlines():
        if re.search(rf":{number}\s", line) and "users:" in line and facts.report["backend"] == "vxlan":
            who = line.partition("users:")[2]
            effect = "tunnel packets of other nodes do not arrive"
            yield Finding(
                f"UDP port {number} is taken by {who}", effect, "stop that, or set Backend.Port for all nodes"
            )
    yield from _same_tunnel(facts, number)
    yield from _port_dropped(facts, number)


def _same_tunnel(facts: Facts, number: int) -> Iterator[Finding]:
    """Name another vxlan device of our VNI and port."""
    own = _vxlan(facts.link(facts.report["overlay"]))
    for link in facts.links:
        data = _vxlan(link)
        if (
            link["ifname"] != facts.report["overlay"]
            and data
            and (data.get("id"), data.get("port")) == (own.get("id"), number)
            and ("local6" in data) == ("local6" in own)  # the families have sockets of their own
        ):
            what = f"{link['ifname']} has our VNI and UDP port {number}"
            yield Finding(what, "one of the two gets no packets", f"ip link delete {link['ifname']}")


def _port_dropped(facts: Facts, number: int) -> Iterator[Finding]:
    """Name rules that drop the tunnel's packets."""
    for rule in _rules(facts.iptables, "INPUT", "PREROUTING", "OUTPUT"):
        if re.search(rf"--dports? (\S*,)?{number}\b", rule) and _target(rule) in _DROPS:
            what = f"a rule drops the tunnel's packets: {_shown(facts, rule)}"
            effect = "this node and others do not hear each other"
            yield Finding(what, effect, "remove it, or accept the port before it")
    for chain, entry in _nft_rules(facts):
        if (
            chain.get("hook") in ("input", "prerouting", "output")
            and _nft_drops(entry)
            and _nft_dport(entry, number)
        ):
            what = f"a rule of nftables drops UDP port {number}, in {_nft_place(entry)}"
            effect = "this node and others do not hear each other"
            yield Finding(what, effect, "remove it, or accept the port before it")


def forward(facts: Facts) -> Iterator[Finding]:
    """Forwarded packets of the overlay are let through."""
    network = facts.report.get("network")
    if not network:
        return
    accepted = "FLANNEL-FWD" in facts.iptables or _accepts(facts.iptables, network)
    own_table, tool = f"flannel-ipv{facts.family.value}", _TOOLS[facts.family]
    by_nft = any(chain.get("table") == own_table for chain in _nft_chains(facts))
    if _policy(facts.iptables, "FORWARD") in _DROPS and not accepted:
        what = f"FORWARD of {tool} drops by default, and nothing there accepts the overlay"
        effect = "no packet goes between pods of different nodes"
        if by_nft:
            what += ": an accept of nftables (EnableNFTables) cannot override another table's drop"
            do = f'set "EnableNFTables": false, or {tool} -P FORWARD ACCEPT; Docker sets DROP at each start'
        else:
            do = "start the daemon with --iptables-forward-rules (its default)"
        yield Finding(what, effect, do)
    for chain in _nft_chains(facts):
        foreign = chain.get("table") not in ("filter", own_table)
        foreign = foreign and chain.get("family", "inet") in ("inet", _NFT[facts.family])
        if chain.get("hook") == "forward" and chain.get("policy") == "drop" and foreign:
            what = f"chain {chain['name']} of nftables table {chain['table']} drops what it does not accept"
            effect = "pods of different nodes talk only as far as it accepts"
            ip = _NFT[facts.family]
            do = f"accept {ip} saddr {network} and {ip} daddr {network} in it"
            yield Finding(what, effect, do, "note")
    for rule in _rules(facts.iptables, "FORWARD", "DOCKER-USER"):
        if _target(rule) in _DROPS and _covers(rule, network):
            effect = "such packets do not arrive"
            if facts.report.get("options", {}).get("fastpath") == "subnets":
                effect = "the kernel path drops such packets; --fastpath=subnets passes by it"
            what = f"a rule drops forwarded packets: {_shown(facts, rule)}"
            yield Finding(what, effect, "remove it, if that is not wanted", "note")


def guards(facts: Facts) -> Iterator[Finding]:
    """No rule or the like keeps pods from the fastest path; unlike all else here it is proved."""
    for guard in facts.report.get("guards", ())[:_SHOWN]:
        how = "kernel" if guard["level"] == "kernel" else "flow"
        what = f"{guard['addresses']} is carried by {how}: {guard['why']}"
        yield Finding(what, "correct, and slower", "nothing, if that is wanted", "note")


def masquerade(facts: Facts) -> Iterator[Finding]:
    """Nobody translates addresses between nodes: such packets cannot be accelerated."""
    subnet = subnet_of(facts.report)
    if subnet is None:
        return
    for rule in _rules(facts.iptables, "POSTROUTING"):
        source = _network(rule, "-s")
        if (
            _target(rule) != "MASQUERADE"
            or "flanneld" in rule
            or source is None
            or not _overlap(subnet, source)
        ):
            continue
        if _ours_first(facts):
            continue
        docker = re.search(r"! -o (docker0|br-\w+)", rule)
        what = f"{'Docker' if docker else 'a rule'} masquerades what pods send to other nodes: {_shown(facts, rule)}"
        do = "exclude the overlay's network from it"
        if docker:
            do = "start the daemon with --ip-masq and Docker with --ip-masq=false (flannel-ebpf docker-opts says so)"
        yield Finding(what, "nothing goes by BPF, and pods see the node's address", do)


def docker(facts: Facts) -> Iterator[Finding]:
    """Docker 28 and later drops packets that come from other hosts to unpublished ports (moby#49792)."""
    subnet = subnet_of(facts.report)
    for rule in _rules(facts.iptables, "PREROUTING", "DOCKER"):
        target = _network(rule, "-d")
        if subnet is None or target is None or _target(rule) != "DROP" or not _overlap(subnet, target):
            continue
        if re.search(r"! -i \S+", rule):
            what = f"Docker drops packets from other hosts to its containers: {_shown(facts, rule)}"
            effect = "pods of other nodes reach published ports only"
            do = "start Docker with --allow-direct-routing (docker-opts --allow-direct-routing; Docker 28.2)"
            yield Finding(what, effect, do)
            return


def _vxlan(link: Json) -> Json:
    """Return what the kernel says of a vxlan device, nothing of another."""
    info = link.get("linkinfo", {})
    return info.get("info_data", {}) if info.get("info_kind") == "vxlan" else {}


def _tunnel_port(facts: Facts) -> int:
    backend = facts.report.get("backend", "")
    info = facts.link(facts.report.get("overlay") or "").get("linkinfo", {}).get("info_data", {})
    return int(info.get("port", _PORTS.get(backend, 0)))


def _rules(text: str, *chains: str) -> Iterator[str]:
    for line in text.splitlines():
        if any(line.startswith(f"-A {chain} ") for chain in chains):
            yield line


def _target(rule: str) -> str:
    found = re.search(r" -j (\S+)", rule)
    return found[1] if found else ""


def _network(rule: str, flag: str) -> Network | None:
    found = re.search(rf"(?<!! ){flag} ([\da-f.:]+(?:/\d+)?)(?= |$)", rule)
    return ip_network(found[1], strict=False) if found else None


def _overlap(some: Network, other: Network) -> bool:
    return some.version == other.version and some.overlaps(other)


def _shown(facts: Facts, rule: str) -> str:
    """Return a rule, with the tool that shows it where that is not iptables."""
    return rule if facts.family is Family.V4 else f"{_TOOLS[facts.family]} {rule}"


def _covers(rule: str, network: str) -> bool:
    """Say whether a rule names the overlay, or part of it, by address."""
    named = [_network(rule, flag) for flag in ("-s", "-d")]
    return any(one is not None and _overlap(one, ip_network(network)) for one in named)


def _policy(text: str, chain: str) -> str:
    return next((line.split()[1] for line in text.splitlines() if line.startswith(f":{chain} DROP")), "")


def _accepts(text: str, network: str) -> bool:
    rules = [rule for rule in _rules(text, "FORWARD", "DOCKER-USER") if _target(rule) == "ACCEPT"]
    return any(_covers(rule, network) for rule in rules)


def _ours_first(facts: Facts) -> bool:
    """Say whether our masquerade rules come before everybody's in POSTROUTING: they let such packets go as they are."""
    first = next(iter(_rules(facts.iptables, "POSTROUTING")), "")
    return "FLANNEL-POSTRTG" in first


def _nft_chains(facts: Facts) -> Iterator[dict[str, Any]]:
    for one in facts.nft:
        if "chain" in one:
            yield one["chain"]


def _nft_rules(facts: Facts) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield (base chain, rule) of tables that iptables does not write."""
    bases = {(one["family"], one["table"], one["name"]): one for one in _nft_chains(facts)}
    for one in facts.nft:
        rule = one.get("rule")
        if rule and not _by_iptables(rule):
            chain = bases.get((rule["family"], rule["table"], rule["chain"]), {})
            yield chain, rule


def _by_iptables(rule: dict[str, Any]) -> bool:
    """Say whether iptables wrote a rule: its chains have names in capitals in tables of these names."""
    shown = any("xt" in part for part in rule.get("expr", ()))
    return shown or (rule["table"] in ("filter", "nat", "mangle", "raw") and rule["chain"].isupper())


def _nft_drops(rule: dict[str, Any]) -> bool:
    return any("drop" in part or "reject" in part for part in rule.get("expr", ()))


def _nft_dport(rule: dict[str, Any], number: int) -> bool:
    for part in rule.get("expr", ()):
        match = part.get("match", {})
        if match.get("left", {}) == {"payload": {"protocol": "udp", "field": "dport"}}:
            right = match.get("right")
            return right == number or (isinstance(right, dict) and number in right.get("set", ()))
    return False


def _nft_place(rule: dict[str, Any]) -> str:
    return f"{rule['family']} {rule['table']} {rule['chain']}, handle {rule.get('handle')}"


CHECKS: dict[str, Check] = {
    "port": port,
    "forward": forward,
    "guards": guards,
    "masquerade": masquerade,
    "docker": docker,
}
