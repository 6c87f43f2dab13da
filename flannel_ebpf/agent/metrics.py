"""Prometheus metrics of one node: what the programs count, how passes went, and how etcd is.

Read when scraped: a scrape costs one dump of two per-CPU arrays and of the small maps, packets nothing. docs/
metrics.md lists them; names stay.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.base import tally
from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.base.family import Network
from flannel_ebpf.desired.proof.proof import Level
from flannel_ebpf.desired.proof.ranges import size
from flannel_ebpf.kernel.programs.readout import fill, read_pinned

PEERS = 1000
"""Peers with series of their own, the busiest; the rest are one peer called "other"."""

_TALLIES = {
    "passes": (
        "Passes over the kernel's state, by how much they looked at and how they ended.",
        ("kind", "result"),
    ),
    "pass_seconds": ("CPU seconds spent in passes.", ("kind",)),
    "errors": ("Operations and passes that failed, by kind.", ("kind",)),
    "etcd_requests": ("Requests to etcd by their end: ok, unavailable, refused.", ("result",)),
    "etcd_request_seconds": ("Seconds that answered requests to etcd took.", ()),
    "etcd_watches": ("Streams of changes that etcd began; each after the first is a restart.", ()),
    "kube_requests": ("Requests to the API server by their end: ok, unavailable, refused.", ("result",)),
    "kube_watches": ("Watches of the API server that began.", ()),
    "lease_renewals": ("Times that this node's lease was written, or could not be.", ("result",)),
}
"""Total in base/tally.py -> its help and labels."""


class NodeCollector(Collector):
    """Turns pinned maps, tallies and the last outcome into metrics.

    `last` returns None before the first pass; `overlay` is the device of the kernel's path, "" without one.
    """

    def __init__(
        self, network: Network, pin_root: Path, overlay: str, last: Callable[[], Outcome | None], commit: str
    ) -> None:
        self._network = network
        self._pin_root = pin_root
        self._overlay = overlay
        self._last = last
        self._build = [metadata.version("flannel-ebpf"), commit, platform.python_version()]

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; those of maps that are not there (kernel path) are left out."""
        build = GaugeMetricFamily("flannel_ebpf_build_info", "1.", labels=["version", "commit", "python"])
        build.add_metric(self._build, 1)
        yield build
        yield from _tallies()
        yield from _marks()
        yield from _outcome(self._last())
        yield from _kernel_path(self._overlay)
        try:
            side = read_pinned(self._network, self._pin_root)
            filled = fill(self._network, self._pin_root)
        except BpfError:
            return
        if side:
            yield from _packets(side["reasons"])
            yield from _traffic(side["peers"])
            yield from _fill(filled)


def registry(collector: NodeCollector) -> CollectorRegistry:
    """Return a registry of this collector and of what is known of this process."""
    made = CollectorRegistry()
    made.register(collector)
    ProcessCollector(registry=made)
    return made


def _tallies() -> Iterator[Metric]:
    totals = dict(tally.TOTALS)  # a copy: other threads go on counting
    for name, (text, labels) in _TALLIES.items():
        family = CounterMetricFamily(f"flannel_ebpf_{name}", text, labels=labels)
        for (counted, *values), total in totals.items():
            if counted == name:
                family.add_metric(values, total)
        yield family


def _marks() -> Iterator[Metric]:
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    expiry = tally.MARKS.get("lease_expiry")
    for who, whose in (("etcd", "etcd"), ("kube", "the API server")):
        answer = tally.MARKS.get(f"{who}_answer")
        if answer is not None:
            text = f"Seconds since {whose} last answered."
            yield GaugeMetricFamily(f"flannel_ebpf_{who}_last_answer_age_seconds", text, value=now - answer)
    if expiry is not None:
        text = "Seconds until this node's lease expires unless it is renewed."
        yield GaugeMetricFamily("flannel_ebpf_lease_expires_in_seconds", text, value=expiry - now)


def _outcome(outcome: Outcome | None) -> Iterator[Metric]:
    if outcome is None:
        return
    for name, help_text, value in (
        ("flannel_ebpf_peers", "Remote subnets that this node wants to reach.", outcome.peers),
        ("flannel_ebpf_peers_failed", "Those of them whose way could not be made.", outcome.failed_peers),
        (
            "flannel_ebpf_peers_in_use",
            "Of these, what has kernel objects of its own: all, unless they come on demand.",
            outcome.peers if outcome.used is None else outcome.used,
        ),
        ("flannel_ebpf_pods", "Local pods' veths.", outcome.pods),
        ("flannel_ebpf_accelerated", "1 while BPF programs are attached.", outcome.accelerated),
        ("flannel_ebpf_skipped_leases", "Leases that cannot be used.", len(outcome.skipped)),
    ):
        yield GaugeMetricFamily(name, help_text, value=float(value))
    text = "What failed in the last pass: the node's own, or a part's (one peer, one pod, only speed)."
    failures = GaugeMetricFamily("flannel_ebpf_failures", text, labels=["weight"])
    failures.add_metric(["own"], len(outcome.errors("own")))
    failures.add_metric(["part"], len(outcome.errors("part")))
    yield failures
    if outcome.proof:
        text = "Addresses of this node's IPv4 subnet, by how rules have their packets carried."
        carried = GaugeMetricFamily("flannel_ebpf_addresses", text, labels=["level"])
        for level in Level:
            carried.add_metric([level.name.lower()], size(outcome.proof.of_level(level)))
        yield carried


def _kernel_path(overlay: str) -> Iterator[Metric]:
    """Yield what the overlay's device counts: packets that went the kernel's way whole, both families."""
    lines = Path("/proc/self/net/dev").read_text().splitlines() if overlay else []
    counted = next((line.split()[1:] for line in lines if line.strip().startswith(f"{overlay}:")), None)
    if counted is None:
        return
    for unit, received, sent in (("bytes", 0, 8), ("packets", 1, 9)):
        family = CounterMetricFamily(
            f"flannel_ebpf_kernel_path_{unit}", f"The overlay device's {unit}.", labels=["direction"]
        )
        family.add_metric(["rx"], float(counted[received]))
        family.add_metric(["tx"], float(counted[sent]))
        yield family


def _packets(reasons: dict[str, dict[str, int]]) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "flannel_ebpf_packets", "Packets by program and by what became of them.", labels=["hook", "reason"]
    )
    for reason, hooks in reasons.items():
        for hook, packets in hooks.items():
            family.add_metric([hook, reason.lower()], packets)
    yield family


def _traffic(peers: Sequence[dict[str, Any]]) -> Iterator[Metric]:
    ranked = sorted(peers, key=lambda peer: -(peer["tx_bytes"] + peer["rx_bytes"]))
    for unit, text in (("packets", "Packets carried by BPF."), ("bytes", "Inner IP bytes carried by BPF.")):
        family = CounterMetricFamily(f"flannel_ebpf_peer_{unit}", text, labels=["peer", "direction"])
        for direction in ("tx", "rx"):
            for peer in ranked[:PEERS]:
                family.add_metric([str(peer["subnet"]), direction], float(peer[f"{direction}_{unit}"]))
            if ranked[PEERS:]:
                rest = sum(peer[f"{direction}_{unit}"] for peer in ranked[PEERS:])
                family.add_metric(["other", direction], float(rest))
        yield family


def _fill(filled: dict[str, tuple[int, int]]) -> Iterator[Metric]:
    entries = GaugeMetricFamily("flannel_ebpf_map_entries", "Entries of a BPF map.", labels=["map"])
    room = GaugeMetricFamily("flannel_ebpf_map_max_entries", "Entries it has room for.", labels=["map"])
    for name, (used, most) in filled.items():
        entries.add_metric([name], used)
        room.add_metric([name], most)
    yield entries
    yield room
