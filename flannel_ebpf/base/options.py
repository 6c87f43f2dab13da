"""The daemon's options: one line says a flag's name, default, range and meaning, and nothing says it again.

Names are the flags' with underscores, so `--subnet-file` is `subnet_file`. The command line checks ranges
(`commands/flags.py`); these classes only carry.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

from flannel_ebpf.base.family import Address, Family

DatapathChoice = Literal["auto", "ebpf", "kernel"]
FastpathChoice = Literal["auto", "flows", "subnets", "off"]
PeersChoice = Literal["auto", "all", "on-demand"]
SourceCheckChoice = Literal["drop", "count", "off"]
XdpChoice = Literal["off", "generic", "native", "auto"]
AttachChoice = Literal["auto", "tcx", "clsact"]
LogFormat = Literal["klog", "json"]

Spelling = Literal["", "endpoints", "prefix", "listen", "listen-address", "features"]
"""How a value is written, where its type does not say so."""

BPF_PIN_ROOT = Path("/sys/fs/bpf/flannel-ebpf")
"""Where programs and maps are pinned unless `--bpf-pin-root` says otherwise."""


class About(NamedTuple):
    """What a flag means, its range (None: no bound), and how it is spelled."""

    text: str
    least: float | None = None
    most: float | None = None
    spelling: Spelling = ""


def flag(
    default: Any,
    text: str,
    *,
    least: float | None = None,
    most: float | None = None,
    spelling: Spelling = "",
    secret: bool = False,
) -> Any:
    """Return a dataclass field that is a flag; a `secret` one is never printed."""
    return field(default=default, repr=not secret, metadata={"about": About(text, least, most, spelling)})


class Described(NamedTuple):
    """A flag as its dataclass has it: field name, type, default."""

    name: str
    kind: Any
    default: Any
    about: About


def flags_of(options: type) -> Iterator[Described]:
    """Yield the flags of a dataclass, in order."""
    kinds = get_type_hints(options)
    for one in fields(options):
        if "about" in one.metadata:
            yield Described(one.name, kinds[one.name], one.default, one.metadata["about"])


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """Where etcd is, how to be let in, and the prefix of the network's keys; "" means not given.

    Endpoints are URLs; https makes the connection TLS. The server is checked against `cafile`, or the
    system's authorities without one (flanneld wants a client certificate before it does TLS at all).
    `certfile` and `keyfile` come together or not at all. The flags' names begin with `etcd-`.
    """

    endpoints: tuple[str, ...] = flag(
        ("http://127.0.0.1:4001", "http://127.0.0.1:2379"),
        "Comma list of etcd endpoints.",
        spelling="endpoints",
    )
    prefix: str = flag("/coreos.com/network", "Key prefix of the network.", spelling="prefix")
    keyfile: str = flag("", "Private key of the client, PEM.")
    certfile: str = flag("", "Certificate of the client, PEM.")
    cafile: str = flag("", "Certificate authority of the servers, PEM; it may stand alone.")
    username: str = flag("", "User of etcd's own authentication.")
    password: str = flag("", "Password of etcd's own authentication.", secret=True)


STATE_FLAGS = frozenset({"subnet_file", "state_dir", "bpf_pin_root"})
"""The flags that also commands about a node's state take."""


@dataclass(frozen=True, slots=True)
class KubeOptions:
    """Whether Kubernetes holds the leases instead of etcd, where its API server is, what to write there."""

    kube_subnet_mgr: bool = flag(False, "Take leases from Kubernetes' nodes, the network config from a file.")
    kube_api_url: str = flag("", "URL of the API server; wins over the kubeconfig's and the pod's.")
    kubeconfig_file: str = flag("", "Kubeconfig file; empty: the pod's service account.")
    kube_annotation_prefix: str = flag("flannel.alpha.coreos.com", "What a node's annotations begin with.")
    net_config_path: Path = flag(Path("/etc/kube-flannel/net-conf.json"), "File with the network config.")
    set_node_network_unavailable: bool = flag(
        True, "Set the node's condition NetworkUnavailable to false once packets can flow."
    )


@dataclass(frozen=True, slots=True)
class Options:
    """Everything `flannel-ebpf up` takes; the first part is flanneld's, with its defaults."""

    etcd: EtcdOptions = field(default_factory=EtcdOptions)
    kube: KubeOptions = field(default_factory=KubeOptions)
    subnet_file: Path = flag(
        Path("/run/flannel/subnet.env"), "File that tells container runtimes the subnet and MTU."
    )
    iface: tuple[str, ...] = flag((), "Uplink by name or address; repeatable, the first that is there.")
    iface_regex: tuple[str, ...] = flag((), "Uplink by regular expression, after --iface.")
    iface_can_reach: str = flag("", "Uplink by the route to this address.")
    public_ip: IPv4Address | None = flag(None, "Address that other nodes use to reach this one.")
    public_ipv6: IPv6Address | None = flag(None, "The same for IPv6.")
    subnet_lease_renew_margin: int = flag(60, "Minutes before expiry to renew the lease.", least=1, most=1439)
    ip_masq: bool = flag(False, "Masquerade traffic that leaves the network.")
    ip_masq_fully_random_disable: bool = flag(False, "Masquerade without fully random ports.")
    iptables_resync: int = flag(5, "Seconds between checks of the firewall rules.", least=1)
    iptables_forward_rules: bool = flag(True, "Accept forwarded traffic of the network.")
    ip_blackhole_route: bool = flag(False, "Keep a blackhole route for the own subnet.")
    healthz_ip: str = flag(
        "0.0.0.0",  # noqa: S104 - flanneld's default; the server is off unless a port is given
        "Address of the health server; empty: every one.",
        spelling="listen-address",
    )
    healthz_port: int = flag(0, "Port of the health server; 0: none.", least=0, most=2**16 - 1)

    state_dir: Path = flag(Path("/run/flannel-ebpf"), "Folder for locks and state of this daemon.")
    bpf_pin_root: Path = flag(BPF_PIN_ROOT, "Folder in a BPF file system for programs and maps.")
    datapath: DatapathChoice = flag(
        "auto", "auto: BPF where it can run, else the kernel path; ebpf: exit where it cannot."
    )
    fastpath: FastpathChoice = flag(
        "auto",
        "Packets that BPF carries: flows: of admitted flows; auto: besides all of pods that no rule "
        "concerns; subnets: all.",
    )
    revalidate: float = flag(
        10.0, "Seconds a flow is carried by BPF before it is looked at anew.", least=0.1, most=3600
    )
    flow_entries: int = flag(262_144, "Size of the flow table.", least=64, most=2**24)
    attach: AttachChoice = flag("auto", "How programs come onto tc hooks; auto: tcx where there is one.")
    without: tuple[str, ...] = flag(
        (), "Comma list of kernel features not to use, even where there are.", spelling="features"
    )
    pod_grace: float = flag(
        2.0, "Seconds that a new pod's veth is left to CNI plugins before clsact.", least=0, most=60
    )
    pod_headroom: bool = flag(True, "Add a port to the pods' bridge that gives their packets headroom.")
    outer_checksum: bool = flag(False, "Give vxlan packets over IPv4 an outer UDP checksum, as over IPv6.")
    peers: PeersChoice = flag(
        "auto",
        "vxlan: which peers have kernel objects: all, or on-demand those in use; auto: from 2000 on.",
    )
    source_check: SourceCheckChoice = flag("drop", "What to do with packets of a wrong source.")
    xdp: XdpChoice = flag("off", "XDP program on the uplink.")
    stand_aside: float = flag(
        300.0,
        "Seconds of the daemon's silence after which its programs leave all packets alone; 0: never.",
        least=0,
        most=86_400,
    )
    lease_ttl: int = flag(86_400, "Seconds a lease lives without renewal.", least=5, most=9_000_000_000)
    wipe_grace: float = flag(
        300.0, "Seconds to keep peers that etcd has suddenly lost.", least=0, most=86_400
    )
    bpf_objects: Path = flag(Path(__file__).parents[1] / "_programs", "Folder of the compiled BPF programs.")
    metrics_listen: str = flag("", "ADDRESS:PORT of the Prometheus endpoint.", spelling="listen")
    log_format: LogFormat = flag("klog", "Log lines as flanneld's, or a JSON object each.")

    @property
    def public_ips(self) -> dict[Family, Address]:
        """The addresses to publish, of those families for which one is given."""
        given = (self.public_ip, self.public_ipv6)
        return {family: address for family, address in zip(Family, given, strict=True) if address}

    @property
    def renew_margin(self) -> float:
        """Seconds before its expiry at which a lease is renewed.

        A lease too short for the flag's margin (flannel's are a day, ours may be less) is renewed after a
        third of its life.
        """
        margin = self.subnet_lease_renew_margin * 60
        return margin if margin < self.lease_ttl else self.lease_ttl * 2 / 3
