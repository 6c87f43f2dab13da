"""A stranger at a tcx hook: `tcx_stranger.py attach|detach DEVICE ingress|egress [NAME]`.

The tools of many distributions do not know tcx yet. `detach` takes off whatever stands there.
"""

from __future__ import annotations

import socket
import sys

from flannel_ebpf.desired.objects import Direction, Filter
from flannel_ebpf.kernel.bpf import Program, attached_by_tcx
from flannel_ebpf.kernel.hooks import tcx

COMMAND = [sys.executable, __file__]
"""This file as a command, without its arguments."""

TCX_NEXT = bytes.fromhex("b7000000ffffffff9500000000000000")
TCX_DROP = bytes.fromhex("b7000000020000009500000000000000")


def attach(device: str, direction: Direction, name: str = "stranger", code: bytes = TCX_NEXT) -> int:
    """Put a program behind all others; it stays. Return its id."""
    with Program.load(code, name) as program:
        number = program.info().id
        tcx.put_filter(
            Filter(socket.if_nametoindex(device), direction, name, number, "tcx"), None, program.fd
        )
    return number


def detach(device: str, direction: Direction, *numbers: int) -> None:
    """Take these programs off, or all that stand there."""
    index = socket.if_nametoindex(device)
    for number in numbers or attached_by_tcx(index, direction):
        tcx.delete_filter(Filter(index, direction, "", number, "tcx"))


if __name__ == "__main__":
    verb, device_name, way, *rest = sys.argv[1:]
    where: Direction = "ingress" if way == "ingress" else "egress"
    if verb == "attach":
        attach(device_name, where, *rest)
    else:
        detach(device_name, where)
