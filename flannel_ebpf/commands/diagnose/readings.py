"""What maps and devices hold, as plain rows for tables and JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import fields
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

from flannel_ebpf.base.family import Address
from flannel_ebpf.contract import abi, enums, learned
from flannel_ebpf.contract.enums import PodFlag
from flannel_ebpf.contract.record import Record
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.kernel.programs.readout import pods_in, read_peers

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6"}
_TCP = 6

MAPS: dict[str, tuple[type[Record] | None, type[Record]]] = {
    "fl_peers": (abi.SubnetKey, abi.Peer),
    "fl_vteps": (abi.AddrKey, abi.SubnetKey),
    "fl_pods": (abi.AddrKey, abi.Pod),
    "fl_ports": (None, abi.Port),
    "fl_levels": (abi.SubnetKey, abi.Level),
    "fl_proof": (None, abi.Proof),
    "fl_flows": (learned.FlowKey, learned.Flow),
    "fl_reasons": (None, learned.Count),
    "fl_peer_stats": (None, learned.Traffic),
}
"""Map -> how its keys and values are read; None: a number."""


def end(address: Address | str, port: int) -> str:
    """Return one end of a connection as people write it: 10.1.2.3:80, [fd00::1]:80."""
    text = str(address)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def peers(folder: Path) -> list[dict[str, Any]]:
    """Return every peer with its traffic by BPF."""
    return list(read_peers(folder))


def pods(folder: Path, names: dict[int, str], programs: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return every pod that the programs know, then pods' devices on which none is known.

    `names` are those of devices, `programs` what stands on each.
    """
    pods = pods_in(folder)
    with Map.open(folder / "fl_ports") as ports:
        flags = {abi.unpack_u32(key): abi.Port.unpack(value).flags for key, value in ports.items().items()}
    found = []
    for address, pod in pods.items():
        every = pod.flags | flags.get(pod.ifindex, PodFlag(0))
        found.append({"ip": str(address), "mac": str(pod.mac), **_place(pod.ifindex, names, programs, every)})
    silent = flags.keys() - {pod.ifindex for pod in pods.values()}
    for ifindex in sorted(silent):
        found.append({"ip": "", "mac": "", **_place(ifindex, names, programs, flags[ifindex])})
    return found


def _place(
    ifindex: int, names: dict[int, str], programs: dict[str, list[str]], flags: PodFlag
) -> dict[str, Any]:
    """Return what is known of a pod's device, and by which path its packets go."""
    device = names.get(ifindex, "")
    standing = programs.get(device, [])
    why = _why_kernel(ifindex, flags, standing=bool(standing))
    free = "all its packets: no rule concerns it" if PodFlag.STATELESS in flags else ""
    return {
        "device": device,
        "programs": standing,
        "path": "kernel" if why else "bpf",
        "why": why or free,
    }


def _why_kernel(ifindex: int, flags: PodFlag, *, standing: bool) -> str:
    if not ifindex:
        return "its device is not known yet"
    if PodFlag.SHAPED in flags:
        return "a qdisc, filter or program of others stands on its device"
    if PodFlag.GUARDED in flags:
        return "rules judge its packets one by one: see `flannel-ebpf status`"
    return "" if standing else "no program stands on its device"


def flows(folder: Path, names: dict[int, str]) -> Iterator[dict[str, Any]]:
    """Yield every connection that the programs know; ages in seconds, None: never.

    Those of pods that no rule concerns go by BPF whatever was noted of them, and mostly nothing was.
    """
    now, free = time.monotonic_ns(), _free(folder)
    with Map.open(folder / "fl_flows") as known:
        for key, value in known.items().items():
            flow, which = learned.Flow.unpack(value), learned.FlowKey.unpack(key)
            whole, opened = which.pod in free, which.proto != _TCP or flow.established
            yield {
                "pod": str(which.pod),
                "pod_port": which.pod_port,
                "remote": str(which.remote),
                "remote_port": which.remote_port,
                "protocol": PROTOCOLS.get(which.proto, str(which.proto)),
                "sends_by_bpf": whole or (bool(flow.sent) and opened),
                "hears_by_bpf": whole or (bool(flow.heard) and opened),
                "sent_age": _age(now, flow.sent),
                "heard_age": _age(now, flow.heard),
                "device": names.get(flow.ifindex, ""),
            }


def _free(folder: Path) -> set[Address]:
    """Return the pods all of whose packets BPF carries, as long as the daemon vouches for that."""
    with Map.open(folder / "fl_proof") as proof:
        value = proof.lookup(abi.pack_u32(0))
    if value is None or abi.Proof.unpack(value).until < time.monotonic_ns():
        return set()
    return {address for address, pod in pods_in(folder).items() if PodFlag.STATELESS in pod.flags}


def _age(now: int, since: int) -> float | None:
    return round((now - since) / 1e9, 3) if since else None


def entries(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return a map's entries: {"key": ..., "value": {field: ...}}, per-CPU values added up."""
    key_kind, value_kind = MAPS[name]
    with Map.open(folder / name) as one:
        raw = one.sums() if name in ("fl_reasons", "fl_peer_stats") else one.items()
    found = []
    for key, value in sorted(raw.items()):
        if key_kind is None:
            shown: Any = abi.unpack_u32(key)
            shown = enums.Reason(shown).name.lower() if name == "fl_reasons" else shown
        else:
            shown = _plain(key_kind.unpack(key))
        found.append({"key": shown, "value": _plain(value_kind.unpack(value))})
    return found


def _plain(record: Record) -> dict[str, Any]:
    return {one.name: _value(getattr(record, one.name)) for one in fields(record)}  # type: ignore[arg-type]  # Record's children are dataclasses


def _value(value: object) -> int | str:
    """Return a number as itself and an enum's member by its name."""
    if isinstance(value, IntEnum):
        return value.name.lower()
    if isinstance(value, IntFlag):
        return "|".join(one.name.lower() for one in value if one.name) or 0
    return value if isinstance(value, int) else str(value)
