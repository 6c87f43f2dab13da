"""Random rulesets in nft's language, out of everything that the proof must judge.

Each rule that is not neutral has a shadow before it: the same tests, a counter, and its number as comment.
Where a shadow has counted, a packet would have met that rule.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tests.netns.proof.ground import ELSEWHERE, NODE_IP, OUTSIDER, PODS, REMOTE, SERVICE, SUBNET
from tests.netns.proof.random_tests import DEVICES, PORTS, Counting, Table, known_device, single, tests

STATEFUL = (
    "limit rate 5/second",
    "limit rate over 5/second",
    "quota over 100 bytes",
    "quota until 200 bytes",
    "ct count over 2",
    "numgen inc mod 2 0",
)
"""Tests that remember: they stand behind the shadow."""


NEUTRAL = (
    "counter",
    "log group 7",
    'log prefix "x" level debug',
    "limit rate 3/minute log group 7",
    "meta nftrace set 1",
    "meta mark set meta mark and 0x0000ffff",
    "meta mark set 0",
    'counter comment "x"',
)


def act(table: Table) -> str:
    """One statement that is not neutral, and lets the packet go on."""
    random = table.random
    found = [
        "meta mark set 1",
        "meta mark set meta mark or 0x4000",
        "meta priority set 1:10",
        "ip dscp set cs1",
        "ip ttl set 33",
        "udp dport set 53",
        f"meta mark set ip saddr map {{ {single(random)} : 3 }}",
        "meta pkttype set host",
        "meta mark set jhash ip saddr mod 4",
        "tcp option maxseg size set 500",
    ]
    if table.family not in {"bridge", "netdev"}:
        found += [
            "ct mark set 1",
            "ct label set 1",
            "meta mark set ct mark",
            "notrack",
            "ct zone set 5",
            "tcp option maxseg size set rt mtu",
            "synproxy mss 1460 wscale 7",
            f"dup to {OUTSIDER}",
        ]
    if table.family == "netdev":
        found += ['dup to "eth0"', 'fwd to "eth0"']
    if random.random() < 0.15:
        name = f"o{len(table.sets)}"
        kind, body = random.choice(
            [("quota", "over 200 bytes"), ("limit", "rate 3/second"), ("counter", "packets 0 bytes 0")]
        )
        table.sets.append(f"{kind} {name} {{ {body}; }}")
        return (
            f"{kind} name {name} {random.choice(['accept', 'drop'])}"
            if kind != "counter"
            else f"counter name {name} drop"
        )
    if random.random() < 0.2:
        dynamic = table.declare("set", "type ipv4_addr; flags dynamic; size 1024", "d")
        return f"{random.choice(['add', 'update'])} @{dynamic} {{ ip {random.choice(['saddr', 'daddr'])} }}"
    return random.choice(found)


def verdict(table: Table, hook: str, targets: list[str]) -> str:
    """What ends a rule; most do nothing to a packet, or nobody would be free."""
    random = table.random
    ends = ["accept"] * 6 + ["return"] * 2 + ["continue"] + ["drop"] * 5
    if table.family in {"ip", "inet"} and hook in {"input", "forward", "output", ""}:
        ends += ["reject", "reject with icmp type admin-prohibited"]
    ends += [f"{random.choice(['jump', 'jump', 'goto'])} {name}" for name in targets for _ in range(3)]
    if targets:
        ends += [_verdict_map(table, targets)] * 2
    return random.choice(ends)


def _verdict_map(table: Table, targets: list[str]) -> str:
    random = table.random

    def to() -> str:
        return random.choice(
            ["accept", "drop", "return", *(f"{w} {t}" for t in targets for w in ("jump", "goto"))]
        )

    def elements(key: Callable[[], str]) -> str:
        keys = dict.fromkeys(key() for _ in range(random.randint(1, 3)))
        return "{ " + ", ".join(f"{one} : {to()}" for one in keys) + " }"

    name = table.declare(
        "map", "type ipv4_addr : verdict; elements = " + elements(lambda: single(random)), "m"
    )
    ranges = table.declare(
        "map",
        f"type ipv4_addr : verdict; flags interval; elements = {{ {SUBNET} : {to()}, {ELSEWHERE} : {to()} }}",
        "m",
    )
    return random.choice(
        [
            f"ip {random.choice(['saddr', 'daddr'])} vmap @{name}",
            f"ip {random.choice(['saddr', 'daddr'])} vmap @{ranges}",
            f"ip {random.choice(['saddr', 'daddr'])} vmap {{ {single(random)} : {to()}, * : {to()} }}",
            "ip daddr . meta l4proto . th dport vmap "
            + elements(
                lambda: f"{single(random)} . {random.choice(['tcp', 'udp'])} . {random.choice(PORTS)}"
            ),
            "tcp dport vmap " + elements(lambda: str(random.choice(PORTS))),
            "iifname vmap " + elements(lambda: known_device(random)),
            "meta l4proto vmap " + elements(lambda: random.choice(["tcp", "udp", "icmp"])),
        ]
    )


def translation(table: Table, hook: str) -> str:
    """A NAT statement that fits the hook."""
    random = table.random
    to = random.choice([*PODS, *REMOTE, NODE_IP, ELSEWHERE])
    protocol = random.choice(["tcp", "udp"])
    of = "ip " if table.family == "inet" else ""
    if hook in {"prerouting", "output"}:
        found = [
            f"dnat {of}to {to}",
            f"meta l4proto {protocol} dnat {of}to {to}:80",
            "meta l4proto tcp redirect to :80",
            f"dnat {of}to {PODS[0]}-{PODS[1]}",
            f"dnat {of}to ip daddr map {{ {SERVICE} : {to}, {ELSEWHERE} : {to} }}",
            f"dnat {of}to numgen random mod 2 map {{ 0 : {to}, 1 : {random.choice(REMOTE)} }}",
        ]
    else:
        found = (
            [
                "masquerade",
                f"snat {of}to {to}",
                f"meta l4proto {protocol} snat {of}to {to}:3000-4000",
                "masquerade fully-random",
            ]
            if hook == "postrouting"
            else [f"snat {of}to {to}"]
        )
    return random.choice(found)


def rule(table: Table, hook: str, kind: str, targets: list[str], counting: Counting) -> list[str]:
    """One rule with its shadow."""
    random = table.random
    found = tests(table, counting)
    if random.random() < 0.25:
        return [" ".join([*found, random.choice(NEUTRAL)])]
    if kind == "nat" and random.random() < 0.5:
        end = translation(table, hook)
        if end.startswith("meta l4proto"):
            found.append(" ".join(end.split()[:3]))
            end = " ".join(end.split()[3:])
    elif random.random() < 0.2:
        end = act(table)
    else:
        end = verdict(table, hook, targets)
    shadow = (
        []
        if end.split()[0] in {"accept", "return", "continue", "jump", "goto"} or "vmap" in end
        else [" ".join([*found, "counter", f'comment "{counting.next()}"'])]
    )
    if random.random() < 0.12 and end != "continue":
        stateful = random.choice(STATEFUL[:4] if table.family in {"bridge", "netdev"} else STATEFUL)
        shadow = shadow or [" ".join([*found, "counter", f'comment "{counting.next()}"'])]
        found.append(stateful)
    return [*shadow, " ".join([*found, end])]


HOOKS = {
    "ip": [
        ("filter", "prerouting", (-300, -150, -10, 0)),
        ("filter", "forward", (-150, 0, 10)),
        ("filter", "postrouting", (-150, 0, 50)),
        ("filter", "input", (0,)),
        ("filter", "output", (-300, 0)),
        ("nat", "prerouting", (-100,)),
        ("nat", "postrouting", (100,)),
        ("nat", "output", (-100,)),
        ("nat", "input", (100,)),
        ("route", "output", (-150,)),
        ("filter", "ingress", (0,)),
    ],
    "bridge": [
        ("filter", "prerouting", (-300, 0)),
        ("filter", "input", (-200,)),
        ("filter", "forward", (0,)),
        ("filter", "output", (0,)),
        ("filter", "postrouting", (0,)),
    ],
    "netdev": [("filter", "ingress", (0, -500)), ("filter", "egress", (0,))],
}


def table(number: int, random: Random, counting: Counting) -> str:
    """One table with base chains, chains that they lead to, and sets."""
    family = random.choice(["ip", "ip", "ip", "inet", "inet", "inet", "bridge", "netdev", "netdev"])
    made = Table(family, f"t{number}", random)
    targets: list[str] = []
    for user in range(random.choice([0, 0, 1, 2, 3])):
        name = f"u{user}"
        made.chains[name] = [
            line for _ in range(random.randint(0, 4)) for line in rule(made, "", "filter", targets, counting)
        ]
        targets.append(name)
    known = HOOKS["ip" if family in {"ip", "inet"} else family]
    forward = [one for one in known if one[1] == "forward"]
    for base in range(random.choice([1, 1, 2, 3])):
        kind, hook, priorities = random.choice(known + forward * 3)
        name = f"b{base}"
        policy = random.choices(["accept", "drop"], [24, 1])[0] if kind != "nat" else "accept"
        where = f"device {random.choice(DEVICES)} " if hook in {"ingress", "egress"} else ""
        made.heads[name] = (
            f"type {kind} hook {hook} {where}priority {random.choice(priorities)}; policy {policy};"
        )
        if family == "netdev" and random.random() < 0.3:
            made.heads[name] = made.heads[name].replace(where, "devices = { veth0, veth2, cni0 } ")
        reachable = targets if kind != "nat" else []
        made.chains[name] = [
            line for _ in range(random.randint(1, 5)) for line in rule(made, hook, kind, reachable, counting)
        ]
    return made.text()


NOBODYS = """
table ip6 six { chain c { type filter hook forward priority 0; policy drop; }; }
table arp a { chain c { type filter hook output priority 0; drop; }; }
"""


def ruleset(random: Random, counting: Counting) -> str:
    """One to three tables, and at times some that no packet of the test meets."""
    nobodys = NOBODYS.lstrip() if random.random() < 0.1 else ""
    return nobodys + "".join(table(number, random, counting) for number in range(random.choice([1, 1, 2, 3])))
