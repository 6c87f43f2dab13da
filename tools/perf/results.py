"""Figures of a whole run: medians, ratios round by round, targets, JSON. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from statistics import median
from typing import Any


@dataclass
class Series:
    """One mode's figures for one metric, by round. A round that was refused is missing here."""

    mode: str
    metric: str
    unit: str
    lower: bool = False
    rounds: dict[int, float] = field(default_factory=dict)
    path: Counter[str] = field(default_factory=Counter)
    refused: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """The median of all rounds, None when every one was refused."""
        return median(self.rounds.values()) if self.rounds else None

    def to_json(self) -> dict[str, Any]:
        """Return this as the JSON output has it; `workload` is the metric's name."""
        found = {
            "mode": self.mode,
            "workload": self.metric,
            "unit": self.unit,
            "lower_is_better": self.lower,
            "rounds": [round(self.rounds[number], 4) for number in sorted(self.rounds)],
            "median": None if self.median is None else round(self.median, 4),
            "path": {name: packets for name, packets in self.path.most_common() if packets},
        }
        return found | ({"refused": self.refused} if self.refused else {})


Table = dict[tuple[str, str], Series]
"""(mode, metric) -> series."""


def ratio(over: Series | None, under: Series | None) -> float | None:
    """Return the median of `over / under`, each taken within one round; None without a common round.

    A disturbance of the machine lasts longer than a round's neighbours, so it cancels in a ratio of those.
    """
    if over is None or under is None:
        return None
    common = sorted(over.rounds.keys() & under.rounds.keys())
    ratios = [over.rounds[number] / under.rounds[number] for number in common if under.rounds[number]]
    return median(ratios) if ratios else None


@dataclass(frozen=True)
class Target:
    """`mode`'s `metric` over that of `base` is at least `value` (`at_most`: at most).

    Without `base` the figure itself is compared. `base_metric` is another metric to compare with.
    """

    mode: str
    metric: str
    value: float
    base: str | None = None
    base_metric: str | None = None
    at_most: bool = False

    def reached(self, table: Table) -> float | None:
        """Return the ratio or figure that was measured, None when a part of it was not."""
        own = table.get((self.mode, self.metric))
        if self.base is None:
            return own.median if own else None
        return ratio(own, table.get((self.base, self.base_metric or self.metric)))

    def met(self, reached: float) -> bool:
        """Whether that is good enough, at the two digits that are shown."""
        shown = round(reached, 2)
        return shown <= self.value if self.at_most else shown >= self.value

    @property
    def text(self) -> str:
        """`ebpf-vxlan tcp_stream / kernel-vxlan >= 1.25`."""
        under = f" / {' '.join(filter(None, (self.base, self.base_metric)))}" if self.base else ""
        return f"{self.mode} {self.metric}{under} {'<=' if self.at_most else '>='} {self.value:g}"


TARGETS = (
    Target("ebpf-vxlan", "tcp_stream", 0.96, "ebpf-hostgw"),
    Target("ebpf-vxlan", "tcp_stream", 1.25, "kernel-vxlan"),
    Target("ebpf-vxlan", "udp_pps", 0.95, "ebpf-hostgw"),
    Target("ebpf-vxlan", "udp_pps", 1.8, "kernel-vxlan"),
    Target("ebpf-vxlan", "tcp_rr", 0.97, "ebpf-hostgw"),
    Target("ebpf-vxlan", "tcp_rr", 1.25, "kernel-vxlan"),
    Target("ebpf-vxlan", "udp_rr", 0.97, "ebpf-hostgw"),
    Target("ebpf-vxlan", "udp_rr", 1.25, "kernel-vxlan"),
    Target("ebpf-vxlan", "tcp_crr", 0.98, "kernel-vxlan"),
    Target("ebpf-vxlan-subnets", "tcp_crr", 1.5, "kernel-vxlan"),
    Target("ebpf-vxlan-auto", "tcp_crr", 1.75, "kernel-vxlan"),
    Target("ebpf-vxlan-auto", "tcp_crr", 0.95, "ebpf-vxlan-subnets"),
    Target("ebpf-vxlan-auto-services", "tcp_crr", 0.98, "ebpf-vxlan-services"),
    Target("ebpf-vxlan", "http", 1.45, "kernel-vxlan"),
    Target("ebpf-vxlan", "flows_10k", 0.95, "ebpf-vxlan", "udp_pps"),
    Target("ebpf-vxlan", "softirq_per_gbit", 0.75, "kernel-vxlan", at_most=True),
    Target("ebpf-hostgw", "tcp_stream", 0.9, "host"),
    Target("ebpf-hostgw", "tcp_rr", 1.2, "kernel-hostgw"),
    Target("udp-relay", "udp_pps", 100),
    Target("udp-relay", "udp_stream", 1.0),
    Target("ebpf-udp", "tcp_stream", 8, "udp-relay"),
)
"""What design and issue ask for. `redirect`, the limit of pods behind a veth, is ebpf-hostgw."""


def to_json(env: dict[str, Any], table: Table) -> dict[str, Any]:
    """Return the whole run as it is written to a file."""
    return {"env": env, "results": [series.to_json() for series in table.values()]}


def from_json(run: dict[str, Any]) -> Table:
    """Read the results of a file. Where a round was refused, the numbers of the others move up."""
    table: Table = {}
    for one in run["results"]:
        rounds = dict(enumerate(one["rounds"]))
        lower, refused = one["lower_is_better"], one.get("refused", [])
        table[one["mode"], one["workload"]] = Series(
            one["mode"], one["workload"], one["unit"], lower, rounds, Counter(one["path"]), refused
        )
    return table
