"""From the operator's options and this host to the datapath's settings."""

from __future__ import annotations

import logging
import os
import re
from pathlib import Path

from flannel_ebpf.base.errors import BpfError, ConfigError
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.contract import features
from flannel_ebpf.contract.enums import Cap, Check, Fastpath
from flannel_ebpf.desired.bpf.contents import Settings
from flannel_ebpf.desired.objects import Attach, XdpMode
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.in_use import Datapath
from flannel_ebpf.kernel.programs.probe import has_tcx, probe

log = logging.getLogger(__name__)

_FASTPATHS = {
    "auto": Fastpath.AUTO,
    "flows": Fastpath.FLOWS,
    "subnets": Fastpath.SUBNETS,
    "off": Fastpath.OFF,
}
_CHECKS = {"drop": Check.DROP, "count": Check.COUNT, "off": Check.OFF}
_XDP_MODES: dict[str, tuple[XdpMode, ...]] = {
    "off": (),
    "generic": ("generic",),
    "native": ("native",),
    "auto": ("native", "generic"),
}
_DEFAULT_TTL = "64"
_DEFAULT_PORTS = "32768 60999"
_TAKES_LAST_PORT = 7


def open_datapath(options: Options, network: Network, root: Path) -> tuple[Datapath | None, Cap, str]:
    """Return the datapath that the options ask for, what the kernel can do, and why there is none.

    `root`: where its programs and maps are pinned. Raises BpfUnavailable with `--datapath=ebpf` where this
    host cannot run programs at all.
    """
    if options.datapath == "kernel" or options.fastpath == "off":
        return None, Cap(0), ""
    try:
        pins.require_bpffs(options.bpf_pin_root)
        found = probe()
    except BpfError as error:
        if options.datapath == "ebpf":
            raise
        return None, Cap(0), str(error)  # the first pass says so
    caps = found & ~features.together(options.without)
    used, unused = features.names(caps), features.names(found & ~caps)
    log.info("kernel has %s", ", ".join(used) or "none of the optional features")
    if unused:
        log.info("and %s, which --without leaves alone", ", ".join(unused))
    bpf = Datapath(
        network,
        root,
        options.bpf_objects,
        options.flow_entries,
        xdp=options.xdp != "off",
    )
    return bpf, caps, ""


def choose_attach(options: Options) -> Attach:
    """Return how programs come onto tc hooks here; raises ConfigError for a way that this kernel has not."""
    if options.attach == "clsact":
        return "clsact"
    if has_tcx():
        return "tcx"
    if options.attach == "tcx":
        raise ConfigError("--attach", "tcx", "auto or clsact, because this kernel has no tcx (Linux 6.6)")
    return "clsact"


def tunnel_ports(local_range: str | None, release: str) -> tuple[int, int]:
    """Return the first of the source ports that the kernel's tunnels take, and how many they are.

    `local_range` is net.ipv4.ip_local_port_range, both inclusive, `release` the kernel's. udp_flow_src_port()
    of include/net/udp.h never took the last port of the range up to Linux 6; 7 does.
    """
    first, last = (int(port) for port in (local_range or _DEFAULT_PORTS).split())
    major = re.match(r"\d+", release)
    return first, last - first + (major is not None and int(major[0]) >= _TAKES_LAST_PORT)


def datapath_settings(options: Options, caps: Cap, attach: Attach, uplink_v6: str = "") -> Settings:
    """Return what the programs are told of the options and of this host's sysctls; raises KernelError.

    `uplink_v6`: name of the interface, for IPv6's programs.
    """
    ttl = f"net/ipv6/conf/{uplink_v6}/hop_limit" if uplink_v6 else "net/ipv4/ip_default_ttl"
    sport_min, sport_count = tunnel_ports(sysctl.read("net/ipv4/ip_local_port_range"), os.uname().release)
    return Settings(
        fastpath=_FASTPATHS[options.fastpath],
        source_check=_CHECKS[options.source_check],
        revalidate_ms=int(options.revalidate * 1000),
        caps=caps,
        sport_min=sport_min,
        sport_count=sport_count,
        ttl=int(sysctl.read(ttl) or _DEFAULT_TTL),
        attach=attach,
        xdp_modes=_XDP_MODES[options.xdp],
        headroom=options.pod_headroom,
        stand_aside=options.stand_aside,
        outer_checksum=options.outer_checksum,
    )
