"""Telling systemd that the service is up (sd_notify(3)); flanneld sends the same one word."""

from __future__ import annotations

import contextlib
import os
import socket


def ready() -> None:
    """Send READY=1 to the socket in NOTIFY_SOCKET, if there is one; a supervisor that is gone is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
        channel.send(b"READY=1")
