"""What a lab should look like, and every name and address that follows from it. Values only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Address, Family, Network

ROOT = Path("/run/flannel-ebpf-lab")
UNDERLAY = IPv4Network("192.168.64.0/24")
UNDERLAYS: Mapping[Family, Network] = {Family.V4: UNDERLAY, Family.V6: IPv6Network("fd00:64::/64")}
"""What joins the nodes; IPv6's only in labs whose network has IPv6."""
SWITCH = 254
"""The switch's number in the underlay: etcd's address, and the nodes' default gateway."""
ETCD_IP = UNDERLAY[SWITCH]
ETCD_ENDPOINT = f"http://{ETCD_IP}:2379"

BACKENDS = ("vxlan", "host-gw", "udp")
DATAPATHS = ("auto", "ebpf", "kernel")
KUBE_PROXY_MODES = ("iptables", "nftables")
FAMILIES = {"4": (Family.V4,), "6": (Family.V6,), "dual": (Family.V4, Family.V6)}
MAX_NODES = 250


@dataclass(frozen=True)
class LabSpec:
    """One lab.

    `datapath` is for all nodes, `datapaths` for single ones ({"n2": "kernel"}); `fastpath` and
    `extra_up_args` go to every daemon as they are, None leaves its default. `backend_config` holds more
    keys of the network config's Backend, `network_config` more keys of its top level. Without
    `start_daemons` the nodes have an uplink and nothing else.
    `family` is what pods have: "4", "6" or "dual"; `network_v6` counts with IPv6 alone.
    `kube_apiserver` is the path of an API server's program: the daemons then run with --kube-subnet-mgr.
    `kube_proxy` is the path of kube-proxy, which then runs on every node in `kube_proxy_mode`.
    """

    name: str = "lab"
    nodes: int = 2
    backend: str = "vxlan"
    datapath: str = "auto"
    fastpath: str | None = None
    family: str = "4"
    network: str = "10.1.0.0/16"
    subnet_len: int = 24
    network_v6: str = "fd10:1::/48"
    subnet_len_v6: int = 64
    pods_per_node: int = 2
    start_daemons: bool = True
    etcd_prefix: str = "/coreos.com/network"
    extra_up_args: tuple[str, ...] = ()
    datapaths: Mapping[str, str] = field(default_factory=dict)
    backend_config: Mapping[str, Any] = field(default_factory=dict)
    network_config: Mapping[str, Any] = field(default_factory=dict)
    kube_apiserver: str = ""
    kube_proxy: str = ""
    kube_proxy_mode: str = "iptables"

    def __post_init__(self) -> None:
        check_name(self.name)
        _one_of("backend", self.backend, BACKENDS)
        _one_of("family", self.family, tuple(FAMILIES))
        for datapath in (self.datapath, *self.datapaths.values()):
            _one_of("datapath", datapath, DATAPATHS)
        _one_of("kube_proxy_mode", self.kube_proxy_mode, KUBE_PROXY_MODES)
        if self.kube_proxy and not self.kube_apiserver:
            raise LabError("kube_proxy: it needs an API server, which kube_apiserver names")
        try:
            subnets = IPv4Network(self.network)
        except ValueError as error:
            raise LabError(f"network {self.network!r}: {error}; 10.1.0.0/16 is one") from error
        room = 2 ** (32 - self.subnet_len) - 3  # less network, broadcast and the bridge
        if not 0 <= self.pods_per_node <= room:
            raise LabError(
                f"pods {self.pods_per_node}: a /{self.subnet_len} of {subnets} has room for {room}"
            )
        if not 1 <= self.nodes <= MAX_NODES:
            raise LabError(f"nodes {self.nodes}: a lab has 1 to {MAX_NODES}")
        unknown = set(self.datapaths) - set(self.node_names)
        if unknown:
            raise LabError(f"datapaths names {', '.join(sorted(unknown))}: nodes are n1 to n{self.nodes}")

    @property
    def node_names(self) -> list[str]:
        """`n1`, `n2` and so on."""
        return [f"n{number}" for number in range(1, self.nodes + 1)]

    @property
    def families(self) -> tuple[Family, ...]:
        """The families of the network, IPv4 first."""
        return FAMILIES[self.family]

    @property
    def networks(self) -> dict[Family, str]:
        """The network of each family that counts."""
        both = {Family.V4: self.network, Family.V6: self.network_v6}
        return {family: both[family] for family in self.families}

    @property
    def folder(self) -> Path:
        """Where everything of this lab lies."""
        return folder_of(self.name)

    @property
    def kube_folder(self) -> Path:
        """Where the API server's files lie, the nodes' kubeconfig and net-conf.json among them."""
        return self.folder / "kube"

    @property
    def switch_ns(self) -> str:
        """Namespace of the bridge that joins the nodes, and of etcd."""
        return f"{self.name}-sw"

    def datapath_of(self, node: str) -> str:
        """Return the datapath of the node called `node`."""
        return self.datapaths.get(node, self.datapath)

    def config_json(self) -> str:
        """Return the network config that goes to `<prefix>/config`."""
        config: dict[str, Any] = {}
        if Family.V4 in self.families:
            config |= {"Network": self.network, "SubnetLen": self.subnet_len}
        else:
            config |= {"EnableIPv4": False}
        if Family.V6 in self.families:
            pool = {"IPv6Network": self.network_v6, "IPv6SubnetLen": self.subnet_len_v6}
            config |= {"EnableIPv6": True, **pool}
        config |= self.network_config
        return json.dumps({**config, "Backend": {"Type": self.backend, **self.backend_config}})

    def to_json(self) -> str:
        """Return this spec as text for `from_json`."""
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> LabSpec:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        values["extra_up_args"] = tuple(values["extra_up_args"])
        return cls(**values)


def check_name(name: str) -> None:
    """Raise LabError unless `name` can name a lab: it becomes part of namespace and folder names."""
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,30}", name):
        raise LabError(f"lab name {name!r}: small letters, digits and dashes, a letter first, at most 31")


def folder_of(lab: str) -> Path:
    """Return the folder of the lab called `lab`."""
    return ROOT / lab


def node_ip(name: str, family: Family = Family.V4) -> Address:
    """Return the underlay address of node `n<number>`: the one of that number."""
    return UNDERLAYS[family][int(name.removeprefix("n"))]


def owns_namespace(lab: str, ns: str) -> bool:
    """Whether namespace `ns` belongs to `lab`, judged by its name alone."""
    return re.fullmatch(rf"{re.escape(lab)}-(sw|n\d+(p\d+)?)", ns) is not None


def _one_of(what: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise LabError(f"{what} {value!r}: the lab knows {', '.join(choices)}")
