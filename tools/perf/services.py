"""Firewall rules as kube-proxy writes them for many services, with endpoints in the lab's own network."""

from __future__ import annotations

from collections.abc import Iterator

SERVICES = 1250
"""With two endpoints each: 10,000 rules in 3,760 chains."""

_HEAD = """*filter
:FORWARD ACCEPT
:KUBE-FORWARD -
-A FORWARD -m comment --comment "kubernetes forwarding rules" -j KUBE-FORWARD
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
:PREROUTING ACCEPT
:OUTPUT ACCEPT
:POSTROUTING ACCEPT
:KUBE-SERVICES -
:KUBE-MARK-MASQ -
:KUBE-POSTROUTING -
"""
_JUMPS = """-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --set-xmark 0x4000/0x0
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
"""


def rules(network: str, services: int = SERVICES) -> str:
    """Return the text for iptables-restore; `network` is the pods' ("10.1.0.0/16")."""
    octets = ".".join(network.split(".")[:2])
    numbers = range(services)
    chains = "".join(f":{name} -\n" for number in numbers for name in _chains(number))
    body = "".join(_service(number, network, octets) for number in numbers)
    return f"{_HEAD}{chains}{_JUMPS}{body}COMMIT\n"


def _chains(number: int) -> Iterator[str]:
    yield f"KUBE-SVC-{number:016X}"
    yield from (f"KUBE-SEP-{number:08X}{endpoint:08X}" for endpoint in range(2))


def _service(number: int, network: str, octets: str) -> str:
    service, *endpoints = _chains(number)
    address = f"10.96.{number // 250}.{number % 250 + 1}"
    said = f'-m comment --comment "default/service-{number}:http"'
    to = f"-d {address}/32 -p tcp {said} -m tcp --dport 80"
    lines = [f"-A KUBE-SERVICES {to} -j {service}", f"-A {service} ! -s {network} {to} -j KUBE-MARK-MASQ"]
    for place, chain in enumerate(endpoints):
        pod = f"{octets}.{number % 250}.{number % 200 + 2 + place}"
        share = "-m statistic --mode random --probability 0.50000000000 " if place == 0 else ""
        lines += [
            f"-A {service} {said} {share}-j {chain}",
            f"-A {chain} -s {pod}/32 {said} -j KUBE-MARK-MASQ",
            f"-A {chain} -p tcp {said} -m tcp -j DNAT --to-destination {pod}:8080",
        ]
    return "\n".join(lines) + "\n"
