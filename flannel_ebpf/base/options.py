"""The daemon's options as values: what flanneld's flags and ours say after they have been read.

Names are the flags' with underscores, so `--subnet-file` is `subnet_file`. The command line checks ranges;
these classes only carry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Literal

DatapathChoice = Literal["auto", "ebpf", "kernel"]
FastpathChoice = Literal["flows", "subnets", "off"]
SourceCheckChoice = Literal["drop", "count", "off"]
XdpChoice = Literal["off", "generic", "native", "auto"]
AttachChoice = Literal["auto", "tcx", "clsact"]


BPF_PIN_ROOT = Path("/sys/fs/bpf/flannel-ebpf")
"""Where programs and maps are pinned unless `--bpf-pin-root` says otherwise."""


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Where etcd is, how to be let in, and the prefix of the network's keys; "" means not given.

    Endpoints are URLs; https makes the connection TLS. The server is checked against `cafile`, or the
    system's authorities without one (flanneld wants a client certificate before it does TLS at all).
    `certfile` and `keyfile` come together or not at all.
    """

    endpoints: tuple[str, ...] = ("http://127.0.0.1:4001", "http://127.0.0.1:2379")
    prefix: str = "/coreos.com/network"
    keyfile: str = ""
    certfile: str = ""
    cafile: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Options:
    """Everything `flannel-ebpf up` takes; the first part is flanneld's, with its defaults."""

    etcd: EtcdOptions = field(default_factory=EtcdOptions)
    iface: tuple[str, ...] = ()
    """Names or addresses; the first that resolves wins."""
    iface_regex: tuple[str, ...] = ()
    """Tried after `iface`: against all interfaces' addresses first, then their names."""
    iface_can_reach: str = ""
    """An address: take the interface and source of the kernel's route to it."""
    public_ip: IPv4Address | None = None
    """Published in the lease; None: the uplink's address."""
    subnet_file: Path = Path("/run/flannel/subnet.env")
    subnet_lease_renew_margin: int = 60
    """Minutes before expiry, 1 to 1439."""
    ip_masq: bool = False
    ip_masq_fully_random_disable: bool = False
    iptables_resync: int = 5
    """Seconds between checks of the firewall rules and the blackhole route."""
    iptables_forward_rules: bool = True
    ip_blackhole_route: bool = False
    healthz_ip: str = "0.0.0.0"  # noqa: S104 - flanneld's default; the server is off unless a port is given
    healthz_port: int = 0
    """0: no health server."""

    datapath: DatapathChoice = "auto"
    """auto: BPF where the host can run it, else the kernel path; ebpf: exit where it cannot."""
    fastpath: FastpathChoice = "flows"
    revalidate: float = 10.0
    """Seconds for which an admitted flow stays off the kernel path."""
    flow_entries: int = 262_144
    attach: AttachChoice = "auto"
    """How programs come onto tc hooks; auto: tcx where the kernel has it, else a clsact qdisc."""
    pod_grace: float = 2.0
    """Seconds that a new pod's veth is left to the CNI plugins before a clsact qdisc comes onto it."""
    pod_headroom: bool = True
    """Whether the pods' bridge gets a port that makes room for tunnel headers in their packets."""
    source_check: SourceCheckChoice = "drop"
    """For packets whose source is not who may send it, in BPF and in the udp relay."""
    xdp: XdpChoice = "off"
    fwmark: int = 0x2000
    """The one skb->mark bit with which learning packets are marked inside this host."""
    lease_ttl: int = 86_400
    """Seconds."""
    wipe_grace: float = 300.0
    """Seconds to keep peers after etcd has come back without any of them."""
    state_dir: Path = Path("/run/flannel-ebpf")
    bpf_pin_root: Path = BPF_PIN_ROOT
    bpf_objects: Path = Path(__file__).parents[1] / "_programs"
    """Folder of datapath.bpf.o and xdp.bpf.o."""
    metrics_listen: str = ""
    """`ADDRESS:PORT` of the Prometheus endpoint; "": none."""

    @property
    def renew_margin(self) -> float:
        """Seconds before its expiry at which a lease is renewed.

        A lease too short for the flag's margin (flannel's are a day, ours may be less) is renewed after a
        third of its life.
        """
        margin = self.subnet_lease_renew_margin * 60
        return margin if margin < self.lease_ttl else self.lease_ttl * 2 / 3
