"""The ways a packet can go from one node's pod to another's: each is a lab of its own, all up at once."""

from __future__ import annotations

from dataclasses import dataclass

from flannel_ebpf.base.family import Family
from flannel_ebpf.lab import LabSpec
from perf.services import SERVICES

DAEMON_FLAGS = ("--ip-masq", "--stand-aside=0")
"""As flannel's own manifest for Kubernetes starts it; the rules are the same in every mode. Programs may wait
for daemons for ever, because those are stopped while it is measured."""


@dataclass(frozen=True)
class Mode:
    """One way. `fastpath` is None where BPF carries nothing; `pods` is false for the bare nodes.

    `services`: for so many the nodes have kube-proxy's rules.
    """

    name: str
    text: str
    backend: str = "vxlan"
    fastpath: str | None = None
    pods: bool = True
    flags: tuple[str, ...] = ()
    family: Family = Family.V4
    services: int = 0

    @property
    def spec(self) -> LabSpec:
        """The lab of this mode."""
        return LabSpec(
            name=f"perf-{self.name}",
            nodes=2,
            family=str(self.family.value),
            backend=self.backend,
            datapath="ebpf" if self.fastpath else "kernel",
            fastpath=self.fastpath or "off",
            pods_per_node=1,
            start_daemons=self.pods,
            extra_up_args=(*DAEMON_FLAGS, *self.flags),
        )


_ALL = (
    Mode("host", "the nodes themselves, no overlay", pods=False),
    Mode("kernel-vxlan", "flannel's vxlan, kernel path"),
    Mode("ebpf-vxlan", "vxlan in BPF, admitted flows", fastpath="flows"),
    Mode("ebpf-vxlan-subnets", "vxlan in BPF, every packet between pods", fastpath="subnets"),
    Mode("ebpf-vxlan-auto", "every packet of pods that no rule concerns", fastpath="auto"),
    Mode("kernel-hostgw", "flannel's host-gw, kernel path", backend="host-gw"),
    Mode("ebpf-hostgw", "host-gw in BPF, admitted flows", backend="host-gw", fastpath="flows"),
    Mode("udp-relay", "flannel's udp, TUN relay", backend="udp"),
    Mode("ebpf-udp", "udp in BPF, admitted flows", backend="udp", fastpath="flows"),
    Mode(
        "ebpf-vxlan-services",
        "ebpf-vxlan with 10,000 rules of kube-proxy",
        fastpath="flows",
        services=SERVICES,
    ),
    Mode("ebpf-vxlan-auto-services", "ebpf-vxlan-auto with them", fastpath="auto", services=SERVICES),
    Mode("kernel-vxlan-services", "kernel-vxlan with them", services=SERVICES),
    Mode("ebpf-hostgw-subnets", "host-gw in BPF, every packet", backend="host-gw", fastpath="subnets"),
    Mode("ebpf-hostgw-auto", "host-gw, pods that no rule concerns", backend="host-gw", fastpath="auto"),
    Mode(
        "ebpf-vxlan-checksum",
        "ebpf-vxlan with outer checksums",
        fastpath="flows",
        flags=("--outer-checksum",),
    ),
    Mode("ebpf-vxlan-xdp", "ebpf-vxlan behind the XDP guard", fastpath="flows", flags=("--xdp=native",)),
)

MODES = {mode.name: mode for mode in _ALL}
DEFAULT = tuple(MODES)[:11]
QUICK = ("host", "kernel-vxlan", "ebpf-vxlan", "ebpf-vxlan-subnets", "ebpf-hostgw")
