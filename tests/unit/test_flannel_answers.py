"""Network configs, lease keys and lease values: flannel's own code and ours read them alike.

The table is what flannel answered (tools/flannel_answers.py). Where we differ, we do so on purpose, and each
difference stands here with its reason.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import ConfigError, InvalidLease, UnknownBackend
from flannel_ebpf.base.family import Family
from flannel_ebpf.leases.lease_format import parse_lease

Answer = dict[str, Any]
LEASE_KEY = "/coreos.com/network/subnets/10.1.5.0-24&fc00::-64"


def rows(kind: str) -> Iterator[tuple[str, Answer]]:
    for line in Path(__file__).with_name("flannel_answers.jsonl").read_text().splitlines():
        question, answer = json.loads(line)
        if kind in question:
            yield question[kind], answer


def config(text: str) -> Answer:
    try:
        parsed = parse_network_config(text, "a test")
    except UnknownBackend as error:
        return {"unknown": str(error)}
    except ConfigError as error:
        return {"error": str(error)}
    pools = {
        f"v{pool.family.value}": [
            *map(str, (pool.network, pool.subnet_len, pool.subnet_min, pool.subnet_max))
        ]
        for pool in parsed.pools
    }
    return {"backend": parsed.backend_type, "nftables": parsed.enable_nftables, **pools}


def key(text: str) -> Answer:
    try:
        subnets = parse_lease(text, b'{"PublicIP":"192.0.2.1","PublicIPv6":"fd00::1"}').subnets
    except InvalidLease as error:
        return {"error": str(error)}
    return {f"v{subnet.version}": str(subnet) for subnet in subnets}


def value(text: str) -> Answer:
    try:
        lease = parse_lease(LEASE_KEY, text.encode())
    except InvalidLease as error:
        return {"error": str(error)}
    v4, v6 = lease.part(Family.V4), lease.part(Family.V6)
    assert v4 is not None
    assert v6 is not None
    if v6.flaw:
        return {"error": v6.flaw}
    ip6 = {"ip6": str(v6.public_ip)} if int(v6.public_ip) else {}
    data = {"data": v4.backend_data, "data6": v6.backend_data}
    return {"ip": str(v4.public_ip), "backend": v4.backend_type, **data, **ip6}


def as_we_write(answer: Answer) -> Answer:
    """Return flannel's answer in our spelling of addresses and backends, which flanneld lowers later."""
    wanted = dict(answer)
    if "ip6" in wanted:
        wanted["ip6"] = str(ip_address(wanted["ip6"]))
    if "nftables" in wanted:
        wanted["backend"] = wanted["backend"].lower()
    return wanted


STRICTER = {
    "not above": "flanneld starts with SubnetMin above SubnetMax, and no node ever gets a subnet",
    "udp carries IPv4 alone": "flanneld's udp ignores IPv6",
    "not the whole of": "a network of all addresses would take every route of the host",
    "no pod can have": "loopback, multicast and the like: flanneld starts, and no packet comes through",
    "such as fc00::/48": "Go reads an IPv4 network where an IPv6 one belongs",
    "an IPv6 address is needed": "likewise an address",
    "host bits set": "a subnet with host bits is nobody's whole subnet",
    "not a lease key": "flannel takes keys beside `subnets/` for leases",
    "the value is not a JSON object": "null is a lease without an address in Go",
    "'::ffff:10.0.0.1'": "Go reads a mapped address as an IPv4 one; flanneld never writes it",
}
"""What we refuse although flannel does not, by a part of our words."""
LAXER = {
    "invalid IP address format": "null for an address or a network counts as absent, as it does for flags",
    "invalid CIDR address: null": "likewise",
}
"""What flannel refuses and we read, by a part of its words."""
BACKEND_TWICE = '"bACKEND":null'
"""A second Backend that is null takes the first one away in flannel; here it is as if it were not there."""


def on_purpose(text: str, flannels: Answer, mine: Answer) -> bool:
    """Say whether the two answers differ as they are meant to."""
    told, said = flannels.get("error"), mine.get("error")
    if told is None and said is not None:
        return any(part in said for part in STRICTER)
    if told is not None and said is None:
        return "null" in text and any(part in told for part in LAXER)
    return BACKEND_TWICE in text


def alike(flannels: Answer, mine: Answer) -> bool:
    if "error" in flannels or "error" in mine:
        return "error" in flannels and "error" in mine
    if "unknown" in mine:
        return flannels["backend"].lower() not in ("vxlan", "host-gw", "udp")
    return mine == as_we_write(flannels)


@pytest.mark.parametrize(("kind", "ours"), [("config", config), ("key", key), ("value", value)])
def test_flannel_and_we_read_alike(kind: str, ours: Callable[[str], Answer]) -> None:
    answers = [(text, flannels, ours(text)) for text, flannels in rows(kind)]
    different = [
        f"{text}\n  flannel: {flannels}\n  here:    {mine}"
        for text, flannels, mine in answers
        if not alike(flannels, mine) and not on_purpose(text, flannels, mine)
    ]
    assert len(answers) >= 100
    assert not different, "\n".join(different)
