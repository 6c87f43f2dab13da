"""`flannel-ebpf status`: what this node's overlay is made of, from the kernel and the daemon's report."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from flannel_ebpf.agent import relay_side
from flannel_ebpf.base.errors import BpfError, ConfigError, KernelError
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.which import Asked, chosen
from flannel_ebpf.contract.features import NAMES, WITHOUT
from flannel_ebpf.host import report
from flannel_ebpf.host.lock import claimant, lock_path, serving
from flannel_ebpf.kernel.hooks.standing import standing
from flannel_ebpf.kernel.programs.readout import other_family, read_pinned

SHOWN = 4
"""Devices named of all those that a program stands on."""


def status(options: Options, asked: Asked, *, as_json: bool) -> int:
    """Print the state of every network that is asked for and that a daemon serves or has served here.

    Returns 0 when a daemon runs for each of them, 3 otherwise (as `systemctl status` does). Raises
    ConfigError when nothing of a daemon is here.
    """
    networks = chosen(options, asked)
    if not networks:
        places = f"{options.state_dir} and {options.bpf_pin_root}"
        raise ConfigError("--state-dir", None, f"no daemon has run here: looked in {places}")
    reports = [state_of(options, network, told) for network, told in networks.items()]
    click.echo(json.dumps(reports, indent=2) if as_json else "\n\n".join(_text(one) for one in reports))
    return 0 if all(one["running"] for one in reports) else 3


def state_of(options: Options, network: Network, told: report.Content | None) -> report.Content:
    """Return a network's report, as far as there is one, with what the kernel says beside it."""
    pid = claimant(f"network {network}") or serving(lock_path(options.state_dir, network))
    kernel = kernel_side(network, options.bpf_pin_root)
    if told is None:
        lost = f"{report.path_of(options.state_dir, network)} is missing or no report of this version"
        return {"network": str(network), "running": bool(pid), "pid": pid, "lost": lost, "kernel": kernel}
    one = {**told, "running": bool(pid), "pid": pid or told["pid"], "kernel": kernel}
    if one["backend"] == "udp":
        one["relay"] = relay_side.state(options.state_dir)
    return one


def kernel_side(network: Network, root: Path) -> dict[str, Any]:
    """Return what the pinned maps hold and where programs stand, or why that cannot be read."""
    try:
        every = (network, *other_family(network, root))
        hooks = [asdict(hook) for one in every for hook in standing(one)]
        return {**read_pinned(network, root), "hooks": hooks}
    except (BpfError, KernelError) as error:
        return {"error": str(error)}


def _text(one: dict[str, Any]) -> str:
    kernel = one["kernel"]
    daemon = f"daemon    {_daemon(one)}"
    if "lost" in one:
        lines = [
            f"network   {one['network']}",
            daemon,
            f"report    {one['lost']}",
            *_hook_lines(kernel.get("hooks", ())),
        ]
        return "\n".join(lines)
    every = report.families(one)
    network, address, subnet = (
        " and ".join(family[key] for family in every) for key in ("network", "public_ip", "subnet")
    )
    lines = [
        f"network   {network}, {one['backend']}",
        f"node      {address} on {one['uplink']}, subnet {subnet}",
        daemon,
        f"datapath  {_datapath(one)}",
        *(f"lacks     {name}: {WITHOUT[NAMES[name]]}" for name in one["lacks"] if name in NAMES),
        f"peers     {one['peers']['wanted']}{_on_demand(one)}, pods {one['pods']}",
    ]
    lines += [f"free      {one['free']} addresses: no rule concerns their packets"] if one["free"] else []
    for guard in one["guards"]:
        how = "by the kernel" if guard["level"] == "kernel" else "by flow"
        lines.append(f"guarded   {guard['addresses']}, {how}: {guard['why']}")
    relay = one.get("relay", {})
    if relay:
        counted = ", ".join(f"{name} {count}" for name, count in relay["counters"].items() if count)
        running = f"running, process {relay['pid']}" if relay["pid"] else "NOT running"
        lines.append(f"relay     {running}: {counted}")
    lines += [f"held      {one['peers']['held']}"] if one["peers"]["held"] else []
    lines += [f"warning   {text}" for text in one["warnings"]]
    lines += [f"skipped   {text}" for text in one["skipped"]]
    lines += [f"FAILED    {text}" for text in one["failures"]]
    lines += _hook_lines(kernel.get("hooks", ()))
    for peer in kernel.get("peers", ()):
        lines.append(
            f"peer      {peer['subnet']} via {peer['public_ip']} ({peer['mode']}): "
            f"{peer['tx_packets']} packets sent by BPF, {peer['rx_packets']} received"
        )
    for reason, hooks in kernel.get("reasons", {}).items():
        counts = ", ".join(f"{hook} {packets}" for hook, packets in hooks.items())
        lines.append(f"packets   {reason:<18} {counts}")
    return "\n".join(lines)


def _daemon(one: dict[str, Any]) -> str:
    """Say whether one runs, and what becomes of the programs that it left."""
    if one["running"]:
        return f"running, process {one['pid']}"
    left = one["kernel"].get("stand_aside_in")
    if not one["kernel"].get("hooks") or left == 0:
        return "NOT running"
    if left is None:
        return "NOT running; its programs go on with what they know, for ever"
    return f"NOT running; its programs go on with what they know for {left} s, then they stand aside"


def _on_demand(one: dict[str, Any]) -> str:
    return f" ({one['on_demand']} in use, the others on demand)" if one["on_demand"] >= 0 else ""


def _datapath(one: dict[str, Any]) -> str:
    """Say how packets travel: what stands in the kernel counts, whatever a daemon once reported."""
    hooks, datapath = one["kernel"].get("hooks", ()), one["datapath"]
    if hooks and one["kernel"].get("stand_aside_in") == 0:
        return "kernel: the programs stand aside, because no daemon has been heard of for too long"
    if hooks:
        return "BPF by " + " and ".join(sorted({hook["via"] for hook in hooks}))
    if one["handed_over"]:
        return "kernel: no program is attached since `down`"
    return f"kernel: {datapath['why_not']}" if datapath["why_not"] else "kernel"


def _hook_lines(hooks: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Say on which devices each program stands; of many, the first few."""
    places = defaultdict(list)
    for hook in hooks:
        places[hook["program"], hook["via"], hook["direction"]].append(hook["device"])
    for (program, via, direction), devices in sorted(places.items()):
        more = f" and {len(devices) - SHOWN} more" if len(devices) > SHOWN else ""
        yield f"hooks     {program:<18} {via} {direction} of {', '.join(devices[:SHOWN])}{more}"
