"""Random rulesets in iptables' language, for both of its kinds: `iptables-restore` texts, with shadows as
for nft."""

from __future__ import annotations

from ipaddress import IPv4Address
from random import Random

from tests.netns.proof.ground import (
    ELSEWHERE,
    NETWORK,
    NODE_IP,
    OUTSIDER,
    PEER_IP,
    PEER_SUBNET,
    PODS,
    PORT,
    REMOTE,
    SERVICE,
    SUBNET,
)
from tests.netns.proof.random_tests import Counting

PORTS = (53, 80, 8080, 9)
DEVICES = ("cni0", "cni0", "flannel.1", "flannel.1", "eth0", "docker0", "cali+", "fl+", "veth+")
CHAINS = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "FORWARD", "POSTROUTING", "INPUT", "OUTPUT"),
    "nat": ("PREROUTING", "POSTROUTING", "OUTPUT", "INPUT"),
    "filter": ("FORWARD", "FORWARD", "FORWARD", "INPUT", "OUTPUT"),
    "security": ("FORWARD", "INPUT"),
}
STATEFUL = (
    "-m limit --limit 5/sec",
    "-m hashlimit --hashlimit-above 5/sec --hashlimit-name h --hashlimit-mode srcip",
    "-m quota --quota 200",
    "-m connlimit --connlimit-above 2",
    "-m statistic --mode nth --every 2 --packet 0",
    "-m statistic --mode random --probability 0.5",
    "-m recent --name r --set",
    "-m recent --name r --rcheck",
)


def _no(random: Random) -> str:
    return random.choice(["", "", "", "! "])


def _address(random: Random) -> str:
    return random.choice(
        [str(random.choice(PODS)) for _ in range(5)]
        + [str(random.choice(REMOTE)) for _ in range(4)]
        + [f"{PODS[0]}/31", f"{REMOTE[1]}/30", f"{random.choice(PODS)}/255.255.255.1"]
        + [str(one) for one in (SUBNET, PEER_SUBNET, NETWORK, SERVICE, NODE_IP, PEER_IP, OUTSIDER, ELSEWHERE)]
        + ["192.168.64.0/24", "198.51.100.0/24", "0.0.0.0/1"]
    )


def _port(random: Random) -> str:
    return random.choice([str(one) for one in PORTS] + ["50:100", "1000:65535", str(PORT), "443"])


def _ports(random: Random) -> str:
    return ",".join(dict.fromkeys(_port(random) for _ in range(3)))


def _aimed(random: Random, chain: str, victims: tuple[IPv4Address, ...]) -> str:
    """A test that only packets of a few pods pass, or of no pod."""
    way = random.choice(["-s", "-d"])
    if not victims or random.random() < 0.25:
        return random.choice(
            [f"{way} 198.51.100.0/24", f"{way} {SERVICE}", "-p sctp", "-m conntrack --ctstate INVALID"]
        )
    one = random.choice(victims)
    ranged = "src" if way == "-s" else "dst"
    return random.choice([f"{way} {one}", f"{way} {one}", f"-m iprange --{ranged}-range {one}-{one}"])


def tests(random: Random, table: str, chain: str, victims: tuple[IPv4Address, ...]) -> str:
    """Return the tests of one rule, in the order in which the tool wants them."""
    aimed = _aimed(random, chain, victims) if random.random() < 0.85 else ""
    found = [aimed] if aimed else []
    if random.random() < 0.25 and chain not in {"OUTPUT", "POSTROUTING"}:
        found.append(f"{_no(random)}-i {random.choice(DEVICES)}")
    if random.random() < 0.25 and chain not in {"INPUT", "PREROUTING"}:
        found.append(f"{_no(random)}-o {random.choice(DEVICES)}")
    if random.random() < 0.3 and "-s" not in aimed:
        found.append(f"{_no(random)}-s {_address(random)}")
    if random.random() < 0.3 and "-d" not in aimed:
        found.append(f"{_no(random)}-d {_address(random)}")
    protocol = random.choice(["", "", "", "tcp", "tcp", "udp", "udp", "icmp", "sctp", "! tcp"])
    if "-p" in aimed:
        protocol = ""
    if protocol:
        found.append(f"{'! ' if protocol[0] == '!' else ''}-p {protocol.lstrip('! ')}")
    found += _of_protocol(random, protocol)
    if random.random() < 0.35:
        found.append(_other(random, table, chain))
    return " ".join(found)


def _of_protocol(random: Random, protocol: str) -> list[str]:
    if random.random() < 0.4:
        return []
    if protocol in {"tcp", "udp"}:
        way = random.choice(["--dport", "--sport"])
        return [
            random.choice(
                [
                    f"-m {protocol} {_no(random)}{way} {_port(random)}",
                    f"-m multiport {_no(random)}{way}s {_ports(random)}",
                ]
                + ([f"-m multiport --ports {_ports(random)}"])
                + (["-m tcp --tcp-flags SYN,RST SYN", "-m tcp ! --syn"] if protocol == "tcp" else [])
            )
        ]
    if protocol == "icmp":
        return [f"-m icmp {_no(random)}--icmp-type {random.choice(['8', '0', '3', '3/3', 'any'])}"]
    return []


def _other(random: Random, table: str, chain: str) -> str:
    states = random.choice(
        ["INVALID", "NEW", "RELATED,ESTABLISHED", "NEW,INVALID", "UNTRACKED", "DNAT", "SNAT,INVALID"]
    )
    kinds = random.choice(["LOCAL", "UNICAST", "MULTICAST", "LOCAL,BROADCAST"])
    mark = random.choice(["0", "0x1", "0x4000/0x4000", "0x0/0xff", "0x1/0x1"])
    found = [
        *[f"-m conntrack {_no(random)}--ctstate {states}"] * 4,
        f"-m conntrack --ctdir {random.choice(['ORIGINAL', 'REPLY'])}",
        "-m conntrack --ctorigdst 10.96.0.10",
        *[f"-m addrtype {_no(random)}--{random.choice(['dst', 'src'])}-type {kinds}"] * 2,
        *[f"-m mark {_no(random)}--mark {mark}"] * 2,
        f"-m connmark --mark {mark}",
        f"-m pkttype {_no(random)}--pkt-type {random.choice(['unicast', 'broadcast', 'multicast'])}",
        f"-m iprange {_no(random)}--src-range {PODS[0]}-{random.choice(PODS)}",
        f"-m iprange --dst-range {REMOTE[0]}-{random.choice(REMOTE)}",
        "-m length --length 60:100",
        "-m connbytes --connbytes 100: --connbytes-dir both --connbytes-mode bytes",
        "-m ttl --ttl-gt 10",
        "-m dscp --dscp 0",
        "-m tos --tos 0",
        "-m u32 --u32 0>>22&0x3C@0=1",
        "-m string --string request --algo bm",
        "-m time --timestart 00:00 --timestop 23:59",
        "-m cpu --cpu 0",
        "-m realm --realm 0",
        "-m helper --helper ftp",
        "-m policy --dir in --pol none"
        if chain in {"INPUT", "FORWARD", "PREROUTING"}
        else "-m length --length 0:",
        f"-m set --match-set pods {random.choice(['src', 'dst'])}",
        f"-m set ! --match-set empty {random.choice(['src', 'dst'])}",
        f"-m set --match-set pods {random.choice(['src', 'dst'])} --packets-gt 3",
    ]
    if table == "raw" and chain == "PREROUTING":
        found.append("-m rpfilter --invert")
    if chain == "FORWARD":
        found += [
            "-m physdev --physdev-is-bridged",
            "-m physdev ! --physdev-is-bridged",
            "-m physdev --physdev-in veth0",
            "-f",
        ]
    return random.choice(found)


NEUTRAL = (
    "",
    "-j LOG --log-prefix x",
    "-j NFLOG --nflog-group 7",
    "-m limit --limit 3/min -j LOG",
    "-j TRACE",
)


def acts(table: str, chain: str) -> list[str]:
    """Return the targets of a table that are not neutral and let the packet go on."""
    found = ["-j CONNMARK --set-xmark 1/1", "-j SET --add-set written src"]
    if table == "mangle":
        found += [
            "-j MARK --set-xmark 0x1/0x1",
            "-j TTL --ttl-set 33",
            "-j DSCP --set-dscp 10",
            "-j CONNMARK --restore-mark",
            "-j CONNMARK --save-mark",
            "-j HMARK --hmark-tuple src --hmark-mod 3 --hmark-rnd 1",
            "-j TEE --gateway 192.168.64.9",
            "-j MARK --or-mark 0x10",
            "-p tcp -j ECN --ecn-tcp-remove",
            "-j CHECKSUM --checksum-fill",
            "-p tcp -m tcp --tcp-flags SYN,RST SYN -j TCPMSS --set-mss 500",
        ]
        if chain == "PREROUTING":
            found += [
                "-p udp -j TPROXY --on-port 5000 --tproxy-mark 0x1/0x1",
                "-j IDLETIMER --timeout 5 --label x",
            ]
        if chain in {"FORWARD", "OUTPUT", "POSTROUTING"}:
            found += ["-j CLASSIFY --set-class 1:10"]
    if table == "raw":
        found += [
            "-j CT --notrack",
            "-j CT --zone 5",
            "-p tcp -j CT --notrack",
            "-j CT --ctevents new",
            "-j NOTRACK",
        ]
    return found


def _translation(random: Random, chain: str) -> str:
    to = random.choice([*PODS, *REMOTE, NODE_IP, ELSEWHERE])
    if chain in {"PREROUTING", "OUTPUT"}:
        return random.choice(
            [
                f"-j DNAT --to-destination {to}",
                f"-p tcp -j DNAT --to-destination {to}:80",
                "-p udp -j REDIRECT --to-ports 53",
                f"-j DNAT --to-destination {PODS[0]}-{PODS[1]}",
                "-j NETMAP --to 10.1.46.0/24",
                "-p tcp -j DNAT --to-destination :80",
            ]
        )
    if chain == "POSTROUTING":
        return random.choice(
            [
                "-j MASQUERADE",
                f"-j SNAT --to-source {to}",
                "-j MASQUERADE --random-fully",
                "-j NETMAP --to 10.1.46.0/24",
                f"-p tcp -j SNAT --to-source {to}:3000-4000",
            ]
        )
    return f"-j SNAT --to-source {to}"


def _end(random: Random, table: str, chain: str, targets: list[str]) -> str:
    if table == "nat" and random.random() < 0.5 and chain in {"PREROUTING", "OUTPUT", "POSTROUTING", "INPUT"}:
        return _translation(random, chain)
    if random.random() < 0.2:
        return random.choice(acts(table, chain))
    ends = ["-j ACCEPT"] * 6 + ["-j RETURN"] * 2
    ends += ["-j DROP"] * 5 if table != "nat" else []
    if table == "filter" and chain in {"FORWARD", "INPUT", "OUTPUT"}:
        ends += ["-j REJECT", "-p tcp -j REJECT --reject-with tcp-reset", "-j NFQUEUE --queue-num 3"]
    ends += [f"{random.choice(['-j', '-j', '-g'])} {name}" for name in targets for _ in range(3)]
    return random.choice(ends)


def _rule(
    random: Random, table: str, chain: str, inside: str, targets: list[str], counting: Counting
) -> list[str]:
    """One rule of chain `inside`, which hangs on `chain`'s hook."""
    found = tests(random, table, chain, counting.victims)
    if random.random() < 0.25:
        neutral = (*NEUTRAL, "-j MARK --set-xmark 0x0/0xff") if table == "mangle" else NEUTRAL
        return [f"-A {inside} {found} {random.choice(neutral)}"]
    end = _end(random, table, chain, targets)
    first = end.split()[-1] if end.startswith(("-j", "-g")) else ""
    if "-p " in end and "-p " in found:
        found = ""
    harmless = first in {"ACCEPT", "RETURN", *targets}
    shadow = [] if harmless else [_shadow(inside, found, end, counting)]
    if random.random() < 0.12:
        shadow = shadow or [_shadow(inside, found, end, counting)]
        found += " " + random.choice(STATEFUL)
    return [*shadow, f"-A {inside} {found} {end}"]


def _shadow(inside: str, found: str, end: str, counting: Counting) -> str:
    words = end.split()
    protocol = f"-p {words[words.index('-p') + 1]}" if "-p" in words else ""
    return f"-A {inside} {found} {protocol} -m comment --comment {counting.next()}"


def table(random: Random, name: str, counting: Counting) -> list[str]:
    """One table's lines for iptables-restore."""
    chains = list(dict.fromkeys(random.choice(CHAINS[name]) for _ in range(random.choice([1, 1, 2]))))
    lines, rules = [f"*{name}"], []
    for chain in chains:
        policy = random.choices(["ACCEPT", "DROP"], [24, 1])[0] if name != "nat" else "ACCEPT"
        lines.append(f":{chain} {policy}")
        targets: list[str] = []
        for number in range(random.choice([0, 0, 1, 2])):
            user = f"U{number}-{chain[:4]}"
            lines.append(f":{user} -")
            rules += [
                line
                for _ in range(random.randint(0, 4))
                for line in _rule(random, name, chain, user, targets, counting)
            ]
            targets.append(user)
        rules += [
            line
            for _ in range(random.randint(1, 5))
            for line in _rule(random, name, chain, chain, targets, counting)
        ]
    return [*lines, *rules, "COMMIT"]


def ruleset(random: Random, counting: Counting) -> str:
    """One to three tables."""
    names = random.sample(list(CHAINS), random.choice([1, 1, 2, 3]))
    return "\n".join(line for name in names for line in table(random, name, counting)) + "\n"
