"""What a reader has to know of the machine to judge the figures."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import flannel_ebpf
from perf.ends import CLIENT_CORE, SERVER_CORE, Ends
from perf.modes import DAEMON_FLAGS

_PROGRAMS = (
    ("iperf3", "--version"),
    ("sockperf", "--version"),
    ("wrk", "-v"),
    ("nginx", "-v"),
    ("redis-server", "--version"),
    ("clang", "--version"),
)
_OFFLOADS = ("tx-checksum-ip-generic", "tcp-segmentation-offload", "generic-receive-offload")
_SYSCTLS = ("net/core/bpf_jit_enable", "net/ipv4/tcp_congestion_control", "kernel/bpf_stats_enabled")


def describe(ends: Ends, rounds: int, seconds: int) -> dict[str, Any]:
    """Return the facts, by name; offloads are those of a node's uplink."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "flannel-ebpf": flannel_ebpf.__version__,
        "kernel": platform.release(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "cores used": f"server {SERVER_CORE}, client {CLIENT_CORE}",
        "load before": os.getloadavg()[0],
        "rounds": rounds,
        "seconds": seconds,
        "daemon flags": " ".join(DAEMON_FLAGS),
        "offloads": _offloads(ends),
        "sysctls": {name.replace("/", "."): _read(Path("/proc/sys", name)) for name in _SYSCTLS},
        "programs": {name: _version(name, flag) for name, flag in _PROGRAMS},
    }


def _processor() -> str:
    names = re.findall(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return names[0] if names else platform.machine()


def _offloads(ends: Ends) -> dict[str, str]:
    text = ends.lab.node("n1").run(["ethtool", "--show-offload", "eth0"]).stdout
    found = dict(re.findall(r"^\s*([\w-]+): (\w+)", text, re.MULTILINE))
    return {name: found[name] for name in _OFFLOADS if name in found}


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else "unknown"


def _version(program: str, flag: str) -> str:
    done = subprocess.run([program, flag], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+[\w.-]*", done.stdout + done.stderr)
    return found[0] if found else "unknown"
