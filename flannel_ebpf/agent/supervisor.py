"""Telling the supervisor how we are: sd_notify(3) for systemd."""

from __future__ import annotations

import contextlib
import math
import os
import socket


def notify(*lines: str) -> None:
    """Tell the supervisor, if NOTIFY_SOCKET names one, lines such as READY=1; it may be gone meanwhile."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        channel.send("\n".join(lines).encode())


def watchdog_seconds() -> float:
    """Return how often to say WATCHDOG=1: twice as often as sd_watchdog_enabled(3) asks; else infinity."""
    ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    micros = os.environ.get("WATCHDOG_USEC", "")
    return int(micros) / 2e6 if ours and micros.isdigit() and int(micros) else math.inf
