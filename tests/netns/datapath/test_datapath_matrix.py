"""{kernel, BPF} sender x {kernel, BPF} receiver x kinds of traffic: all is delivered, and counters say how.

Nodes with programs talk to nodes that have nothing but the kernel's overlay, in one cluster.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Lab
from tests.netns import kinds
from tests.netns.kinds import Kind, Pair
from tests.netns.labs import MakeLab
from tests.netns.paths import FAST

DOCS = Path(__file__).parents[3] / "docs" / "packet-path.md"
DATAPATHS = {"n1": "ebpf", "n2": "kernel", "n3": "ebpf", "n4": "kernel"}
PAIRS = (("n2", "n4"), ("n2", "n1"), ("n1", "n2"), ("n1", "n3"))


class Expected(NamedTuple):
    """Path at a sender's and a receiver's node that run programs, and the reason of what they leave alone."""

    sender: str
    receiver: str
    reason: Reason | None = None


BOTH_FAST = Expected("BPF", "BPF")
KINDS: dict[str, tuple[Kind, Expected]] = {
    "TCP bulk": (kinds.tcp, BOTH_FAST),
    "UDP small": (kinds.small_udp, BOTH_FAST),
    "UDP GSO": (kinds.udp_gso, BOTH_FAST),
    "ICMP": (kinds.icmp_echo, BOTH_FAST),
    "PMTU": (kinds.pmtu, Expected("BPF", "BPF", Reason.TOO_BIG)),
    "fragments": (kinds.fragments, Expected("kernel", "kernel", Reason.FRAGMENT)),
    "ECN": (kinds.ecn, BOTH_FAST),
    "TTL": (kinds.ttl, Expected("kernel", "kernel", Reason.TTL)),
    "DNAT": (kinds.dnat, Expected("kernel", "BPF", Reason.LEARN_CHANGED)),
    "masquerade": (kinds.masquerade, Expected("kernel", "BPF", Reason.LEARN_CHANGED)),
}
EXCEPTIONS = {
    # A node's own address lies outside the overlay's network: nothing for the programs.
    ("host-gw", "masquerade"): Expected("kernel", "kernel", Reason.NOT_OVERLAY),
    # Linux 6.18 cannot take the tunnel's mark off a super-packet of UDP (BPF_F_ADJ_ROOM_DECAP_L4_UDP).
    ("vxlan", "UDP GSO"): Expected("BPF", "kernel", Reason.GSO),
    ("vxlan, subnets", "UDP GSO"): Expected("BPF", "kernel", Reason.GSO),
}
NETWORKS: dict[str, tuple[dict[str, object], tuple[str, ...]]] = {
    "vxlan": ({}, tuple(KINDS)),
    "vxlan, subnets": (
        {"fastpath": "subnets"},
        ("TCP bulk", "UDP small", "UDP GSO", "ICMP", "PMTU", "fragments", "ECN", "TTL"),
    ),
    "host-gw": (
        {"backend": "host-gw"},
        ("TCP bulk", "UDP small", "UDP GSO", "ICMP", "fragments", "ECN", "TTL", "DNAT", "masquerade"),
    ),
    "DirectRouting": (
        {"backend_config": {"DirectRouting": True}},
        ("TCP bulk", "UDP small", "UDP GSO", "ICMP", "TTL", "DNAT"),
    ),
    "udp": ({"backend": "udp"}, ("TCP bulk", "UDP small", "UDP GSO", "ICMP", "fragments")),
}
REROUTES = ("redirect_neigh", "encap_l2_eth")
"""Features without which more packets take the kernel's path than the table says; all arrive."""

CELLS = [
    (network, kind, pair) for network, (_, names) in NETWORKS.items() for kind in names for pair in PAIRS
]


@pytest.fixture(scope="module")
def without(pytestconfig: pytest.Config) -> str:
    """A kernel feature that the nodes do without, "" for none."""
    return str(pytestconfig.getoption("--without"))


@pytest.fixture(scope="module")
def labs(make_shared_lab: MakeLab, without: str) -> Callable[[str], Lab]:
    """One lab per network, made when it is first asked for."""
    made: dict[str, Lab] = {}
    flags = (f"--without={without}",) if without else ()

    def lab(network: str) -> Lab:
        if network not in made:
            spec = NETWORKS[network][0]
            made[network] = make_shared_lab(
                nodes=4, pods_per_node=1, datapaths=DATAPATHS, extra_up_args=flags, **spec
            )
            if network == "udp":
                kinds.as_on_a_wire(made[network])
        return made[network]

    return lab


def documented() -> dict[tuple[str, str, str], str]:
    """The table of docs/packet-path.md: (network, traffic, heading of the column) -> cell."""
    rows = [line.strip("|\n").split("|") for line in DOCS.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    head = next(row for row in cells if row[:2] == ["network", "traffic"])
    table = [row for row in cells if row[0] in NETWORKS]
    return {
        (row[0], row[1], name): cell for row in table for name, cell in zip(head[2:], row[2:], strict=True)
    }


def heading(pair: tuple[str, str]) -> str:
    return " → ".join(DATAPATHS[name] for name in pair)


@pytest.mark.parametrize(
    ("network", "kind", "pair"),
    CELLS,
    ids=[f"{n}-{k}-{DATAPATHS[a]}-{DATAPATHS[b]}".replace(" ", "-") for n, k, (a, b) in CELLS],
)
def test_everything_arrives_by_the_path_it_should(
    labs: Callable[[str], Lab],
    without: str,
    network: str,
    kind: str,
    pair: tuple[str, str],
) -> None:
    lab = labs(network)
    run, expected = KINDS[kind]
    expected = EXCEPTIONS.get((network, kind), expected)
    seen = run(Pair(lab, lab.node(pair[0]), lab.node(pair[1])))
    if without in REROUTES:
        for counted in seen:
            assert counted.any(Reason.DROP_BROKEN) == counted.any(Reason.GO_ON) == 0
        assert without != "redirect_neigh" or not any(seen[0].at(Hook.FROM_POD, reason) for reason in FAST)
        return
    found = []
    said = [dict(counted.reasons) for counted in seen]
    for name, counted, path in zip(pair, seen, expected[:2], strict=True):
        on_bpf = DATAPATHS[name] == "ebpf"
        assert counted.path == (path if on_bpf else "kernel"), said
        if on_bpf and path == "kernel" and expected.reason:
            assert counted.any(expected.reason) > 0
        assert counted.any(Reason.DROP_BROKEN) == counted.any(Reason.GO_ON) == 0
        found.append(counted.path)
    if expected.reason == Reason.TOO_BIG and DATAPATHS[pair[0]] == "ebpf":
        assert seen[0].at(Hook.FROM_POD, Reason.TOO_BIG) > 0
    assert " → ".join(found) == documented()[network, kind, heading(pair)]


def test_the_documented_table_has_these_cells_and_no_others() -> None:
    assert list(documented()) == [(network, kind, heading(pair)) for network, kind, pair in CELLS]


def test_the_documented_reasons_are_all_and_in_order() -> None:
    rows = [line.split("|")[1].strip() for line in DOCS.read_text().splitlines() if line.startswith("| ")]
    start = rows.index("GO_ON")
    assert rows[start : start + len(Reason)] == [reason.name for reason in Reason]
