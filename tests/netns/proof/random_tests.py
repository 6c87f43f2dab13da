"""Random tests in nft's language: everything that a rule can ask of a packet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
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

PORTS = (53, 80, 8080, 9)
PROTOCOLS = ("tcp", "udp", "th")
ICMP_TYPES = ("echo-request", "echo-reply", "destination-unreachable")
DEVICES = ("cni0", "flannel.1", "eth0", "veth0", "veth1", "veth2", "veth3")
OTHER_DEVICES = ("docker0", "tailscale0", "cali123")


@dataclass
class Counting:
    """Gives each shadow its number, and says which pods most rules are about: else none would be free."""

    victims: tuple[IPv4Address, ...]
    found: int = 0

    @classmethod
    def some(cls, random: Random) -> Counting:
        return cls(tuple(random.sample(PODS, random.choice([0, 1, 1, 2, 3]))))

    def next(self) -> str:
        self.found += 1
        return f"S{self.found}"


@dataclass
class Table:
    """One table while it is made: its family, its sets' declarations, its chains' lines."""

    family: str
    name: str
    random: Random
    sets: list[str] = field(default_factory=list)
    chains: dict[str, list[str]] = field(default_factory=dict)
    heads: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        sleeps = ["flags dormant;"] if self.random.random() < 0.04 else []
        lines = [f"table {self.family} {self.name} {{", *sleeps, *self.sets]
        for chain, rules in self.chains.items():
            lines += [f"chain {chain} {{", *([self.heads[chain]] if chain in self.heads else []), *rules, "}"]
        return "\n".join([*lines, "}", ""])

    def declare(self, kind: str, body: str, prefix: str = "s") -> str:
        name = f"{prefix}{len(self.sets)}"
        self.sets.append(f"{kind} {name} {{ {body}; }}")
        return name


def address(random: Random) -> str:
    """One that packets of the test have, a range around it, or one from elsewhere."""
    return random.choice(
        [str(random.choice(PODS)) for _ in range(5)]
        + [str(random.choice(REMOTE)) for _ in range(4)]
        + [str(random.choice(PODS)) + "/31", f"{PODS[0]}-{random.choice(PODS)}", f"{REMOTE[1]}/30"]
        + [str(one) for one in (SUBNET, PEER_SUBNET, NETWORK, SERVICE, NODE_IP, PEER_IP, OUTSIDER, ELSEWHERE)]
        + ["192.168.64.0/24", "198.51.100.0/24", "0.0.0.0/1"]
    )


def device(random: Random) -> str:
    return f'"{random.choice([*DEVICES, *DEVICES, *OTHER_DEVICES, "veth*", "fl*", "cali*"])}"'


def known_device(random: Random) -> str:
    return f'"{random.choice([*DEVICES, *OTHER_DEVICES])}"'


def port(random: Random) -> str:
    return random.choice([str(one) for one in PORTS] + ["50-100", "1000-65535", str(PORT), "443"])


def _plain_port(random: Random) -> str:
    return str(random.choice(PORTS))


def no(random: Random) -> str:
    return random.choice(["", "", "", "!= "])


def _several(random: Random, one: Callable[[Random], str], most: int = 3) -> str:
    return "{ " + ", ".join(dict.fromkeys(one(random) for _ in range(random.randint(1, most)))) + " }"


def single(random: Random) -> str:
    return str(random.choice([*PODS, *PODS, *REMOTE, SERVICE, NODE_IP, ELSEWHERE]))


def _state(random: Random) -> str:
    return random.choice(
        [
            "invalid",
            "new",
            "established",
            "established,related",
            "new,invalid",
            "related",
            "untracked",
            "!= invalid",
            "!= established,related",
            "vmap { invalid : drop }",
        ]
    )


def _plain_set(table: Table) -> str:
    random = table.random
    body = random.choice(
        [
            f"type ipv4_addr; elements = {_several(random, single)}",
            f"type ipv4_addr; flags interval; auto-merge; elements = {_several(random, address)}",
            f"type ipv4_addr; flags timeout; elements = {{ {single(random)} timeout 1h }}",
            "type ipv4_addr; flags dynamic,timeout; timeout 1h",
            "type ipv4_addr",
            f"type ipv4_addr; counter; elements = {{ {single(random)} }}",
            f"type ipv4_addr; flags interval; elements = {{ {PODS[0]}-{PODS[1]}, {PODS[3]} }}",
            f"typeof ip saddr; flags interval; elements = {{ 0.0.0.0-{PODS[0]}, {PODS[2]}-255.255.255.255 }}",
        ]
    )
    return f"ip {random.choice(['saddr', 'daddr'])} {no(random)}@{table.declare('set', body)}"


def _concatenated(table: Table) -> str:
    random = table.random
    pairs = _several(random, lambda r: f"{single(r)} . {r.choice(PORTS)}")
    ranged = _several(random, lambda r: f"{single(r)}/32 . {r.choice(PORTS)}-{max(PORTS)}", 2)
    name = table.declare("set", f"type ipv4_addr . inet_service; elements = {pairs}")
    return random.choice(
        [
            f"ip daddr . tcp dport {no(random)}{pairs}",
            f"ip saddr . udp dport {no(random)}@{name}",
            f"ip daddr . tcp dport {ranged}",
            f"ip saddr . ip daddr {{ {random.choice(PODS)} . {random.choice(REMOTE)} }}",
            f"iifname . ip saddr {{ {known_device(random)} . {single(random)} }}",
            f"ip saddr . iifname . meta mark != {{ {single(random)} . {known_device(random)} . 0 }}",
            f"ip saddr . meta l4proto . th sport {{ {random.choice(PODS)} . udp . {random.choice(PORTS)} }}",
            f"ip daddr . tcp dport @{table.declare('set', _ranges_of_pairs(random))}",
        ]
    )


def _ranges_of_pairs(random: Random) -> str:
    elements = f"{{ {single(random)}/31 . 50-100, {random.choice(PODS)}/32 . 8080-8090 }}"
    return f"type ipv4_addr . inet_service; flags interval; elements = {elements}"


def _where(random: Random) -> str:
    kinds = random.choice(["local", "unicast", "broadcast", "multicast", "{ local, broadcast }"])
    way = random.choice(["saddr", "daddr"])
    return random.choice(
        [
            f"fib {way} type {no(random) if '{' not in kinds else ''}{kinds}",
            "fib saddr . iif oif missing",
            f"fib {way} . iif type local",
            "fib saddr . iif oif != 0",
        ]
    )


def _odd(random: Random) -> str:
    """What nothing is known of, or what never is true or false of a carried packet."""
    return random.choice(
        [
            "tcp flags syn / syn,ack",
            "meta length > 60",
            "meta length 0-2000",
            "ip ttl 64",
            "ip dscp cs1",
            "ip id 7",
            "ip frag-off & 0x1fff != 0",
            "ip frag-off & 0x1fff == 0",
            "meta pkttype host",
            "meta pkttype { broadcast, multicast }",
            "meta mark 0",
            "meta mark 1",
            "meta mark != 0",
            "meta mark and 0x4000 == 0x4000",
            "meta mark { 1, 2 }",
            "meta protocol ip",
            "meta protocol ip6",
            "ether type ip",
            "@th,0,16 53",
            "@nh,96,32 & 0xff000000 == 0x0a000000",
            "ip version 4",
            "ip hdrlength 5",
            "meta cpu 0",
            "meta cpu < 64",
            "numgen random mod 2 0",
            "meta skuid 0",
            "meta iifgroup 0",
            "meta oifgroup 0",
            "meta iiftype ether",
            "meta hour 00:00-23:59",
            "jhash ip saddr mod 2 0",
            "tcp option maxseg exists",
            "tcp option maxseg size > 100",
            "meta random > 1",
            "socket transparent 1",
            "ip ecn ce",
            "udp length 8-100",
            "tcp window 65000",
            "meta day Monday",
            "meta ibrname cni0",
            "vlan id 5",
            "ether saddr 02:00:00:00:01:00",
            "ether daddr != 02:00:00:00:00:01",
            "ip length > 20",
            "ip checksum 0",
            "meta priority 0",
            "meta secpath missing",
            "icmp code 0",
            "icmp id 20000-21000",
            "symhash mod 2 0",
            "meta l4proto 6-17",
            "tcp doff 5",
            "rt classid 0",
            "meta l4proto { tcp, udp, icmp }",
            "meta l4proto sctp",
            "meta rtclassid 0",
        ]
    )


def _conntrack(random: Random) -> str:
    return random.choice(
        [f"ct state {_state(random)}"] * 4
        + [
            "ct direction original",
            "ct direction reply",
            "ct status dnat",
            "ct status snat,dnat",
            "ct mark 0",
            "ct mark 1",
            "ct original ip daddr 10.96.0.10",
            "ct protocol tcp",
            "ct status assured",
            "ct zone 0",
        ]
    )


def test(table: Table) -> str:
    """One test that every family of the table's kind has."""
    random = table.random
    below_ip = table.family in {"bridge", "netdev"}
    kinds: list[Callable[[], str]] = [
        *[lambda: f"ip saddr {no(random)}{address(random)}"] * 4,
        *[lambda: f"ip daddr {no(random)}{address(random)}"] * 4,
        lambda: f"ip saddr {_several(random, single)}",
        lambda: f"ip daddr {no(random)}{_several(random, single)}",
        *[lambda: f"iifname {no(random)}{device(random)}"] * 2,
        *[lambda: f"oifname {no(random)}{device(random)}"] * 2,
        lambda: "iifname " + _several(random, known_device),
        lambda: f"{random.choice(PROTOCOLS)} {random.choice(['dport', 'sport'])} {no(random)}{port(random)}",
        lambda: (
            f"{random.choice(PROTOCOLS)} dport {no(random)}{_several(random, lambda r: str(r.choice(PORTS)))}"
        ),
        lambda: f"tcp dport {random.choice(['<', '>', '<=', '>='])} {random.choice(PORTS)}",
        lambda: f"meta l4proto {no(random)}{random.choice(['tcp', 'udp', 'icmp'])}",
        lambda: f"ip protocol {no(random)}{random.choice(['tcp', 'udp', 'icmp', 'sctp'])}",
        lambda: f"icmp type {no(random)}{random.choice(ICMP_TYPES)}",
        lambda: f"ip saddr & 255.255.255.1 == {random.choice(['10.1.45.0', '10.1.45.1', '10.1.46.0'])}",
        lambda: _plain_set(table),
        lambda: _concatenated(table),
        lambda: _odd(random),
    ]
    if not below_ip:
        kinds += [lambda: _conntrack(random)] * 4 + [lambda: _where(random)]
        kinds += [lambda: f"iif {no(random)}{random.choice(DEVICES)}"]
    return random.choice(kinds)()


def aimed(table: Table, victims: tuple[IPv4Address, ...]) -> str:
    """A test that only packets of a few pods pass, or of no pod."""
    random = table.random
    way = random.choice(["saddr", "daddr"])
    nobody = [
        f"ip {way} 198.51.100.0/24",
        f"ip {way} {SERVICE}",
        'iifname "docker0"',
        f"tcp dport {PORT}",
        "meta l4proto sctp",
        f"ip saddr . ip daddr {{ {SERVICE} . {random.choice(PODS)} }}",
        "meta nfproto ipv6",
        "ct state invalid",
    ]
    if table.family in {"bridge", "netdev"}:
        nobody = nobody[:4]
    if not victims or random.random() < 0.25:
        return random.choice(nobody)
    one = random.choice(victims)
    some = ", ".join(map(str, victims))
    return random.choice(
        [
            f"ip {way} {one}",
            f"ip {way} {one}",
            f"ip {way} {{ {some} }}",
            f"ip {way} {one}/32",
            f"ip saddr . ip daddr {{ {random.choice(REMOTE)} . {one}, {one} . {random.choice(REMOTE)} }}",
            f"ip {way} @" + table.declare("set", f"type ipv4_addr; flags interval; elements = {{ {some} }}"),
        ]
    )


def tests(table: Table, counting: Counting) -> list[str]:
    found = [test(table) for _ in range(table.random.choice([0, 0, 1, 1, 1, 2, 3]))]
    if table.random.random() < 0.85:
        found.insert(table.random.randint(0, len(found)), aimed(table, counting.victims))
    return found
