"""What `doctor` looks at: gathered once for each family, and what cannot be read hides nothing else."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from flannel_ebpf.base.errors import BpfError, ConfigError, FlannelError, KernelError, SourceError
from flannel_ebpf.base.family import Family, Network, family_of
from flannel_ebpf.base.model import LeasePart
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose.networks import Here, told_families
from flannel_ebpf.commands.diagnose.paths import ip
from flannel_ebpf.commands.diagnose.tables import pods_of
from flannel_ebpf.commands.told import source_of
from flannel_ebpf.host import subnet_env
from flannel_ebpf.host.files import read_small
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.hooks.standing import Hook, standing
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.probe import has_tcx, probe
from flannel_ebpf.kernel.programs.readout import reasons, seconds_left

Json = Mapping[str, Any]

FORWARDING = {Family.V4: "net/ipv4/ip_forward", Family.V6: "net/ipv6/conf/all/forwarding"}
SYSCTLS = (
    *FORWARDING.values(),
    "net/ipv4/conf/all/rp_filter",
    "net/bridge/bridge-nf-call-iptables",
    "net/netfilter/nf_conntrack_tcp_be_liberal",
    "net/netfilter/nf_conntrack_count",
    "net/netfilter/nf_conntrack_max",
)
_OF_DEVICE = ("net/ipv4/conf/{}/rp_filter", "net/ipv6/conf/{}/disable_ipv6")
_RULES = {
    Family.V4: ("iptables-nft-save", "iptables-legacy-save"),
    Family.V6: ("ip6tables-nft-save", "ip6tables-legacy-save"),
}
_STA_UNSYNC = 0x40
_TIMEX_BYTES = 512
_TIMEX_STATUS = 40  # offset of timex.status on 64-bit machines (linux/timex.h)


@dataclass(frozen=True, slots=True)
class Source:
    """What etcd or the API server answered: `error` is "" when it did, `seconds` how long that took."""

    asked: bool
    who: str = "etcd"
    error: str = ""
    seconds: float = 0.0
    lease: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """This host as one family sees it. A text of what failed stands in `unread`, by the fact's name.

    `here`, `routes`, `iptables`, `hooks` and what else differs are that family's.
    """

    root: bool = True
    features: Sequence[str] = ()
    bpf_error: str = ""
    binding: bool = True
    here: Here | None = None
    sysctls: Mapping[str, str | None] = field(default_factory=dict)
    links: Sequence[Json] = ()
    routes: Sequence[Json] = ()
    neighbours: Sequence[Json] = ()
    iptables: str = ""
    nft: Sequence[Json] = ()
    sockets: str = ""
    processes: Sequence[str] = ()
    hooks: Sequence[Hook] = ()
    stand_aside_in: int | None = None
    """Seconds until the programs stand aside if no daemon is heard of, 0 when they do; None: never."""
    reasons: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    pods: Sequence[Json] = ()
    source: Source = Source(asked=False)
    answer_age: float = 0.0
    """Seconds since the daemon last had an answer of it, 0 when it has not told."""
    clock_synchronised: bool = True
    subnet_file: Json = field(default_factory=dict)
    driver: str = ""
    unread: Mapping[str, str] = field(default_factory=dict)

    def link(self, name: str) -> Json:
        """Return the device called `name`, empty when there is none."""
        return next((one for one in self.links if one["ifname"] == name), {})

    @property
    def family(self) -> Family:
        """Whose view it is: IPv4's on a host that has no network."""
        return family_of(self.here.network) if self.here else Family.V4

    @property
    def report(self) -> Json:
        """What the daemon last told, empty when none has."""
        return self.here.report if self.here else {}


class _Reader:
    """Calls what reads, and notes what it cannot."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def __call__(self, name: str, read: Any, *arguments: Any, otherwise: Any) -> Any:
        try:
            return read(*arguments)
        except (FlannelError, OSError, ValueError) as error:
            self.unread[name] = str(error)
            return otherwise


def gather(options: Options, here: Here | None) -> list[Facts]:
    """Look at this host and at the network `here`, once for each of its families.

    Never raises for what it cannot read.
    """
    read = _Reader()
    features, bpf_error = _features(options)
    views = told_families(here) if here else []
    source, own = _source(options, views)
    host = Facts(
        root=os.geteuid() == 0,
        features=features,
        bpf_error=bpf_error,
        binding=importlib.util.find_spec("bcc") is not None,
        here=here,
        sysctls=_sysctls(views),
        links=read("links", ip, "-details", "-stats", "link", "show", otherwise=()),
        nft=json.loads(_output("nft", "-j", "list", "ruleset") or "{}").get("nftables", ()),
        sockets=_output("ss", "-H", "-u", "-l", "-n", "-p"),
        processes=_processes(),
        source=source,
        answer_age=_answer_age(here),
        clock_synchronised=_clock(),
        subnet_file=read("subnet file", _subnet_file, options.subnet_file, otherwise={}),
        driver=_driver(here.report.get("uplink", "") if here else ""),
        unread=read.unread,
    )
    found = [_of_family(read, replace(host, here=one), own) for one in views]
    return found or [replace(host, iptables=_saved(host.family))]


def _of_family(read: _Reader, host: Facts, own: Sequence[LeasePart]) -> Facts:
    """Add what one family sees to what stands of the host."""
    here, family = host.here, f"-{host.family.value}"
    maps = here.maps if here else None
    uplink, subnet = host.report.get("uplink", ""), host.report.get("subnet")
    part = next((part for part in own if str(part.subnet) == subnet), None)
    neighbours = (family, "neigh", "show", "dev", uplink)
    return replace(
        host,
        routes=read("routes", ip, family, "route", "show", "table", "all", otherwise=()),
        neighbours=read("neighbours", ip, *neighbours, otherwise=()) if uplink else (),
        iptables=_saved(host.family),
        hooks=read("hooks", standing, here.network, otherwise=()) if here else (),
        stand_aside_in=read("sign of life", seconds_left, maps, otherwise=None) if maps else None,
        reasons=read("reasons", reasons, maps, otherwise={}) if maps else {},
        pods=read("pods", pods_of, here, otherwise=()) if here and maps else (),
        source=replace(
            host.source, lease={"public_ip": str(part.public_ip), "data": part.backend_data} if part else {}
        ),
    )


def _saved(family: Family) -> str:
    return "\n".join(_output(one) for one in _RULES[family])


def _features(options: Options) -> tuple[Sequence[str], str]:
    try:
        pins.require_bpffs(options.bpf_pin_root)
        found = [(cap.name or "").lower() for cap in probe()]
        return [*found, "tcx"] if has_tcx() else found, ""
    except BpfError as error:
        return (), str(error)


def _sysctls(views: Sequence[Here]) -> dict[str, str | None]:
    devices = [one.report.get(name) for one in views for name in ("overlay", "uplink")]
    names = sorted({one.replace("/", ".") for one in devices if one})
    paths = [*SYSCTLS, *(each.format(name) for name in names for each in _OF_DEVICE)]
    found: dict[str, str | None] = {}
    for path in paths:
        try:
            found[path] = sysctl.read(path)
        except KernelError:
            found[path] = None
    return found


def _output(*command: str) -> str:
    """Return what a tool prints, "" when it is not there or refuses."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stdout if done.returncode == 0 else ""


def _processes() -> list[str]:
    """Return the names of the programs that run in our network namespace."""
    own = os.stat("/proc/self/ns/net").st_ino
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and (entry / "ns/net").stat().st_ino == own:
                found.append((entry / "comm").read_text().strip())
        except OSError:  # it has ended, or is not ours to see
            continue
    return found


def _source(options: Options, views: Sequence[Here]) -> tuple[Source, Sequence[LeasePart]]:
    """Ask where leases stand, within some seconds, for what is there of this node."""
    told = views[0].report if views else {}
    if told and told["etcd"]["username"] and not options.etcd.password:
        return Source(asked=False, error="it wants a password, which only the daemon has"), ()
    begun = time.monotonic()
    who = "etcd"
    try:
        with closing(source_of(options, told or None)) as source:
            who = source.where
            own = source.former({ip_address(one.report["public_ip"]) for one in views if one.report})
    except (SourceError, ConfigError) as error:
        return Source(asked=True, who=who, error=str(error), seconds=time.monotonic() - begun), ()
    return Source(asked=True, who=who, seconds=time.monotonic() - begun), own


def _answer_age(here: Here | None) -> float:
    told = here.report if here else {}
    answered = max((told.get(who, {}).get("answered_at", 0) for who in ("etcd", "kube")), default=0)
    return time.clock_gettime(time.CLOCK_BOOTTIME) - answered if answered else 0.0


def _clock() -> bool:
    """Say whether something keeps this host's clock right (adjtimex(2))."""
    state = ctypes.create_string_buffer(_TIMEX_BYTES)
    ctypes.CDLL(None).adjtimex(state)
    return not int.from_bytes(state.raw[_TIMEX_STATUS : _TIMEX_STATUS + 4], "little") & _STA_UNSYNC


def _subnet_file(path: Path) -> dict[str, str]:
    return dict(subnet_env.assignments(read_small(path)))


def _driver(device: str) -> str:
    place = Path(f"/sys/class/net/{device}/device/driver")
    return place.resolve().name if device and place.exists() else ""


def subnet_of(report: Json) -> Network | None:
    """Return this node's subnet of the family that the report is about, None when no daemon has told."""
    return ip_network(report["subnet"]) if report.get("subnet") else None
