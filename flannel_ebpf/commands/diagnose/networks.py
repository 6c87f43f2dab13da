"""Which networks this node has, and what is known of each: the daemon's report, the pinned maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import click

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import BPF_PIN_ROOT, Options
from flannel_ebpf.commands.diagnose.console import NothingHereError
from flannel_ebpf.commands.values import Subnet
from flannel_ebpf.commands.which import known
from flannel_ebpf.host import report
from flannel_ebpf.host.lock import claimant, lock_path, serving
from flannel_ebpf.kernel.programs.readout import maps_of as pinned_maps
from flannel_ebpf.kernel.programs.readout import newest_maps

network_flag: Callable[[Any], Any] = click.option(
    "--network", "only", type=Subnet(), help="Of several networks on this host, this one."
)


@dataclass(frozen=True, slots=True)
class Here:
    """One network on this node: the daemon's `report`, empty without one; `maps`, None without pins."""

    network: Network
    report: dict[str, Any] = field(default_factory=dict)
    pid: int = 0
    maps: Path | None = None
    root: Path = BPF_PIN_ROOT


def networks(options: Options, only: Network | None = None) -> list[Here]:
    """Return this node's networks, those of `only` if it is given; raises NothingHereError without any."""
    there = known(options)
    found = [_here(options, network, told) for network, told in there.items() if only in (None, network)]
    if found:
        return found
    if only and there:
        raise NothingHereError(f"there is no network {only} here: {', '.join(map(str, there))}")
    places = f"{options.state_dir} and {options.bpf_pin_root}"
    raise NothingHereError(f"no daemon has run here: nothing is in {places}")


def _here(options: Options, network: Network, told: report.Content | None) -> Here:
    return Here(
        network,
        told or {},
        claimant(f"network {network}") or serving(lock_path(options.state_dir, network)),
        newest_maps(network, options.bpf_pin_root),
        options.bpf_pin_root,
    )


def families(here: Here) -> list[Here]:
    """Return a network, and behind it that of the other family whose programs belong to it."""
    every = pinned_maps(here.network, here.root)
    return [
        here,
        *(replace(here, network=one, maps=maps) for one, maps in every.items() if one != here.network),
    ]


def told_families(here: Here) -> list[Here]:
    """Return a network once for each family that the daemon told of, with what it told of that one."""
    told = here.report.get("families")
    if not told:
        return [here]
    maps = pinned_maps(here.network, here.root)
    views = [(ip_network(one["network"]), here.report | one) for one in told]
    return [replace(here, network=one, report=report, maps=maps.get(one)) for one, report in views]


def maps_of(here: Sequence[Here]) -> list[tuple[Here, Path]]:
    """Return those networks that have maps, each family alone; raises NothingHereError when none has."""
    found = [(one, one.maps) for network in here for one in families(network) if one.maps]
    if not found:
        why = next((one.report.get("datapath", {}).get("why_not") for one in here), "")
        raise NothingHereError(
            f"no BPF maps are here: packets take the kernel path{f' ({why})' if why else ''}"
        )
    return found
