"""A NetworkPolicy as its engines write it: netfilter rules on every node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import Lab, Pod


@contextmanager
def denied(lab: Lab, family: Family, client: Pod, server: Pod) -> Iterator[None]:
    """Forbid one pod to reach another, on every node, as an engine for NetworkPolicy writes it there."""
    source, target = client.at(family), server.at(family)
    four = family is Family.V4
    if lab.spec.kube_proxy_mode == "nftables":
        ip = "ip" if four else "ip6"
        pair = f"{ip} saddr {source} {ip} daddr {target}"
        reject = f"{pair} meta l4proto tcp reject with tcp reset; {pair} reject"
        hook = "type filter hook forward priority -1"
        chain = f"chain forward {{ {hook}; ct state established,related accept; {reject}; }}"
        begin = f"nft 'table {ip} denied {{ {chain}; }}'"
        end = f"nft delete table {ip} denied"
    else:
        tool = "iptables -w" if four else "ip6tables -w"
        rules = (
            "-N POLICY",
            "-A POLICY -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
            f"-A POLICY -p tcp -s {source} -d {target} -j REJECT --reject-with tcp-reset",
            f"-A POLICY -s {source} -d {target} -j REJECT",
            "-I FORWARD -j POLICY",
        )
        begin = " && ".join(f"{tool} {rule}" for rule in rules)
        end = f"{tool} -D FORWARD -j POLICY && {tool} -F POLICY && {tool} -X POLICY"
    for node in lab.nodes:
        node.run(["sh", "-c", begin])
    try:
        yield
    finally:
        for node in lab.nodes:
            node.run(["sh", "-c", end])
