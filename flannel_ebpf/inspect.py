"""`flannel-ebpf status`: what this node's overlay is made of, from the kernel and the daemon's last report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import click

from flannel_ebpf import abi
from flannel_ebpf.errors import BpfError, ConfigError
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.kernel.pins import Pins
from flannel_ebpf.options import Options
from flannel_ebpf.report import read_all


def status(options: Options, *, as_json: bool) -> int:
    """Print the state of every network that a daemon serves or has served here.

    Returns 0 when a daemon runs for each of them, 3 otherwise (as `systemctl status` does). Raises
    ConfigError when no daemon has ever written its state into `--state-dir`.
    """
    reports = read_all(options.state_dir)
    if not reports:
        raise ConfigError("--state-dir", str(options.state_dir), "the folder of a daemon that has run")
    for one in reports:
        one["running"] = Path(f"/proc/{one['pid']}").exists()
        one["kernel"] = _kernel_side(IPv4Network(one["network"]), options.bpf_pin_root)
    click.echo(json.dumps(reports, indent=2) if as_json else "\n\n".join(_text(one) for one in reports))
    return 0 if all(one["running"] for one in reports) else 3


def _kernel_side(network: IPv4Network, root: Path) -> dict[str, Any]:
    """Return what the pinned maps hold: peers, pods, reasons by hook, traffic by peer."""
    folders = [one.path for one in Pins.of(network, root).generations() if one.kind == "maps"]
    if not folders:
        return {}
    try:
        return {
            "peers": list(_peers(folders[-1])),
            "pods": list(_pods(folders[-1])),
            "reasons": reasons(folders[-1]),
        }
    except BpfError as error:
        return {"error": str(error)}


def _peers(folder: Path) -> Iterator[dict[str, Any]]:
    with Map.open(folder / "fl_peers") as peers, Map.open(folder / "fl_peer_stats") as stats:
        traffic = stats.sums()
        for key, value in sorted(peers.items().items(), key=lambda item: item[0][4:]):
            subnet, peer = abi.SubnetKey.unpack(key), abi.Peer.unpack(value)
            carried = abi.Traffic.unpack(traffic[abi.pack_u32(peer.slot)])
            yield {
                "subnet": f"{subnet.addr}/{subnet.len}",
                "public_ip": str(peer.public_ip),
                "mode": peer.mode.name.lower(),
                "tx_packets": carried.tx_packets,
                "rx_packets": carried.rx_packets,
            }


def _pods(folder: Path) -> Iterator[dict[str, Any]]:
    with Map.open(folder / "fl_pods") as pods:
        for key, value in sorted(pods.items().items()):
            pod = abi.Pod.unpack(value)
            yield {"ip": str(abi.AddrKey.unpack(key).addr), "ifindex": pod.ifindex, "mac": str(pod.mac)}


def reasons(folder: Path) -> dict[str, dict[str, int]]:
    """Return reason -> hook -> packets, summed over the CPUs, without zeros."""
    found = {}
    with Map.open(folder / "fl_reasons") as counters:
        for key, value in counters.sums().items():
            count = abi.Count.unpack(value)
            hooks = {hook.name.lower(): getattr(count, hook.name.lower()) for hook in abi.Hook}
            if any(hooks.values()):
                found[abi.Reason(abi.unpack_u32(key)).name] = {k: v for k, v in hooks.items() if v}
    return found


def _text(one: dict[str, Any]) -> str:
    datapath = one["datapath"]
    kernel = one["kernel"]
    lines = [
        f"network   {one['network']}, {one['backend']}",
        f"node      {one['public_ip']} on {one['uplink']}, subnet {one['subnet']}",
        f"daemon    {'running, process ' + str(one['pid']) if one['running'] else 'NOT running'}",
        f"datapath  {'BPF' if datapath['accelerated'] else 'kernel'}"
        + (f": {datapath['why_not']}" if datapath["why_not"] else ""),
        f"peers     {one['peers']['wanted']}, pods {one['pods']}",
    ]
    lines += [f"held      {one['peers']['held']}"] if one["peers"]["held"] else []
    lines += [f"skipped   {text}" for text in one["skipped"]]
    lines += [f"FAILED    {text}" for text in one["failures"]]
    for peer in kernel.get("peers", ()):
        lines.append(
            f"peer      {peer['subnet']} via {peer['public_ip']} ({peer['mode']}): "
            f"{peer['tx_packets']} packets sent by BPF, {peer['rx_packets']} received"
        )
    for reason, hooks in kernel.get("reasons", {}).items():
        counts = ", ".join(f"{hook} {packets}" for hook, packets in hooks.items())
        lines.append(f"packets   {reason:<18} {counts}")
    return "\n".join(lines)
