"""Rulesets that real programs wrote, on one of two nodes: whom they let through, BPF does, too."""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node
from tests.netns.neighbours.beside import Beside, Outcome, ask_tcp, ask_udp, echo
from tests.netns.traffic import connection, ping

FOLDER = Path(__file__).parents[1] / "proof" / "real"
FILES = (
    "canal.iptables",
    "kube-router.iptables",
    "cni-portmap-firewall.iptables",
    "docker-28-beside-published.iptables",
    "ufw.iptables",
    "firewalld-public.nft",
    "firewalld-masquerade.nft",
    "kube-proxy-iptables.iptables",
    "kube-proxy-nftables.nft",
)
IPSETS = ("KUBE-SRC-CLIENTS", "KUBE-DST-WEB", "cali40s-clients")
ROUNDS = 30


def text_for(lab: Lab, name: str) -> str:
    """Return the rules with the lab's addresses, in front of flannel's as their programs put them.

    Canal's pods have a device each, the lab's a bridge. What counts for kube-proxy's metrics is left out.
    """
    text = re.sub(r" -m nfacct --nfacct-name +\S+", "", (FOLDER / name).read_text())
    places = count(1)
    text = re.sub(r"^-A FORWARD", lambda _: f"-I FORWARD {next(places)}", text, flags=re.M)
    for prefix, node in zip(("10.1.45.", "10.1.46."), lab.nodes, strict=True):
        text = text.replace(prefix, str(node.subnet[0]).removesuffix("0"))
    if name.startswith("canal"):
        text = re.sub(r"(-[io]) cali(1web|\+)", r"\1 cni0", text)
    return text


@contextmanager
def ruleset(lab: Lab, node: Node, name: str) -> Generator[None, None, None]:
    """The rules of a file on a node, beside those that are there, while the block runs."""
    text = text_for(lab, name)
    before = node.run(["iptables-save"]).stdout
    for ipset in IPSETS:
        node.run(["ipset", "create", ipset, "hash:ip"])
    node.run(["ipset", "add", "KUBE-DST-WEB", str(node.pods[1].ip)])
    nft = name.endswith(".nft")
    try:
        node.run(["nft", "-f", "-"] if nft else ["iptables-restore", "-w", "--noflush"], stdin=text)
        yield
    finally:
        for table in re.findall(r"^table (\w+ \S+) {", text, re.M) if nft else ():
            node.run(["nft", "delete", "table", *table.split()], check=False)
        node.run(["iptables-restore", "-w"], stdin=before, check=False)
        for ipset in IPSETS:
            node.run(["ipset", "destroy", ipset], check=False)


@pytest.mark.parametrize("name", FILES)
def test_whom_rulesets_let_through(beside: Beside, name: str) -> None:
    def scenario(lab: Lab) -> Outcome:
        node, far = lab.node("n1"), lab.pod("n2p1")
        dns, web, free = node.pods
        found: dict[str, object] = {}
        with ruleset(lab, node, name):
            for pod, what in ((dns, "dns"), (web, "web"), (free, "free")):
                found[f"tcp 80 to {what}"] = ask_tcp(far, pod, port=80, rounds=ROUNDS)
                found[f"udp to {what}"] = ask_udp(lab, far, pod, rounds=ROUNDS).answered
                found[f"ping to {what}"] = ping(far, pod.ip, ROUNDS, patience=1)
                found[f"tcp from {what}"] = ask_tcp(pod, far, rounds=ROUNDS)
                found[f"udp from {what}"] = ask_udp(lab, pod, far, rounds=ROUNDS).answered
        return found

    beside.same(scenario)


@pytest.mark.parametrize(
    ("name", "clients"), [("kube-router.iptables", IPSETS[0]), ("canal.iptables", IPSETS[2])]
)
def test_a_policy_that_names_clients(beside: Beside, name: str, clients: str) -> None:
    """Who is named gets in, keeps what it has when it is named no more, and gets nothing new."""

    def scenario(lab: Lab) -> Outcome:
        node, far = lab.node("n1"), lab.pod("n2p1")
        web = node.pods[1]
        with ruleset(lab, node, name):
            before = ask_tcp(far, web, port=80)
            node.run(["ipset", "add", clients, str(far.ip)])
            with connection(far, web, port=80) as (near, there):
                named = echo(near, there)
                node.run(["ipset", "del", clients, str(far.ip)])
                kept = echo(near, there)
            return {"before": before, "named": named, "kept": kept, "after": ask_tcp(far, web, port=80)}

    came = beside.same(scenario)
    assert (came["named"], came["kept"]) == (60, 60)
    assert came["before"] == came["after"] != 60
