"""Prometheus metrics of one node: what the programs count, and how the last pass went.

Read when scraped, from the pinned maps: a scrape costs one dump of two per-CPU arrays, packets nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.base.family import Network
from flannel_ebpf.kernel.programs.readout import read_pinned


class NodeCollector(Collector):
    """Turns pinned maps and the last outcome into metrics. `last` returns None before the first pass."""

    def __init__(self, network: Network, pin_root: Path, last: Callable[[], Outcome | None]) -> None:
        self._network = network
        self._pin_root = pin_root
        self._last = last

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics; those of maps that are not there (kernel path) are left out."""
        outcome = self._last()
        if outcome:
            for name, help_text, value in (
                ("flannel_ebpf_peers", "Remote subnets that this node wants to reach.", len(outcome.peers)),
                ("flannel_ebpf_pods", "Local pods' veths.", outcome.pods),
                ("flannel_ebpf_accelerated", "1 while BPF programs are attached.", outcome.accelerated),
                ("flannel_ebpf_skipped_leases", "Leases that cannot be used.", len(outcome.skipped)),
            ):
                yield GaugeMetricFamily(name, help_text, value=float(value))
            failures = GaugeMetricFamily(
                "flannel_ebpf_failures",
                "What failed in the last pass: the node's own, or a part's (one peer, one pod, only speed).",
                labels=["weight"],
            )
            failures.add_metric(["own"], len(outcome.errors("own")))
            failures.add_metric(["part"], len(outcome.errors("part")))
            yield failures
        try:
            side = read_pinned(self._network, self._pin_root)
        except BpfError:
            return
        if side:
            yield from _packets(side["reasons"])
            yield from _traffic(side["peers"])


def registry(collector: NodeCollector) -> CollectorRegistry:
    """Return a registry that holds this collector alone."""
    made = CollectorRegistry()
    made.register(collector)
    return made


def _packets(reasons: dict[str, dict[str, int]]) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "flannel_ebpf_packets", "Packets by program and by what became of them.", labels=["hook", "reason"]
    )
    for reason, hooks in reasons.items():
        for hook, packets in hooks.items():
            family.add_metric([hook, reason.lower()], packets)
    yield family


def _traffic(peers: list[dict[str, str | int]]) -> Iterator[Metric]:
    for unit, text in (("packets", "Packets carried by BPF."), ("bytes", "Inner IPv4 bytes carried by BPF.")):
        family = CounterMetricFamily(f"flannel_ebpf_peer_{unit}", text, labels=["peer", "direction"])
        for peer in peers:
            for direction in ("tx", "rx"):
                family.add_metric([str(peer["subnet"]), direction], float(peer[f"{direction}_{unit}"]))
        yield family
