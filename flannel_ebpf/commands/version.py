"""`flannel-ebpf version`: what exactly runs here, for a report or a comparison of two nodes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.host.build import PROGRAMS, commit
from flannel_ebpf.kernel.programs.probe import has_tcx, probe

_LIBRARIES = ("etcd3", "grpcio", "protobuf", "pyroute2", "click")


@click.command(short_help="Print version, commit and what this kernel has.")
@click.option("--json", "as_json", is_flag=True, help="For programs rather than people.")
def version(as_json: bool) -> None:
    """Print version, commit, digests of the BPF objects and what this kernel has."""
    found = facts()
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    kernel = found["kernel"]
    rows = {
        "flannel-ebpf": found["version"],
        "commit": found["commit"] or "unknown",
        **found["objects"],
        "kernel": kernel["release"],
        "features": kernel["error"] or ", ".join(kernel["features"]),
        "python": found["python"],
        **found["libraries"],
    }
    for name, text in rows.items():
        click.echo(f"{name:<15} {text}")


def facts() -> dict[str, Any]:
    """Return it all as plain values; what cannot be found out is "" or says why."""
    return {
        "version": metadata.version("flannel-ebpf"),
        "commit": commit(),
        "objects": {path.name: _digest(path) for path in sorted(PROGRAMS.glob("*.o"))},
        "kernel": {"release": os.uname().release, **_kernel()},
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
    }


def _digest(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _kernel() -> dict[str, Any]:
    try:
        features = [(cap.name or "").lower() for cap in probe()] + (["tcx"] if has_tcx() else [])
    except BpfError as error:
        return {"features": [], "error": str(error)}
    return {"features": features, "error": ""}
