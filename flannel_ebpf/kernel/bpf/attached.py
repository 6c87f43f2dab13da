"""Which programs stand on a tcx hook (Linux 6.6). Layout: union bpf_attr of linux/bpf.h, BPF_PROG_QUERY."""

from __future__ import annotations

import ctypes
import struct

from flannel_ebpf.desired.objects import Direction
from flannel_ebpf.kernel.bpf.syscall import call

TCX_HOOKS: dict[Direction, int] = {"ingress": 46, "egress": 47}  # BPF_TCX_INGRESS, BPF_TCX_EGRESS
_QUERY = 16
_MOST = 64  # BPF_MPROG_MAX


def attached_by_tcx(ifindex: int, direction: Direction) -> tuple[int, ...]:
    """Return the ids of the programs on a hook in the order in which they run.

    Raises BpfError: ENODEV without the device, EINVAL on a kernel without tcx.
    """
    ids = ctypes.create_string_buffer(_MOST * 4)
    attr = struct.pack(
        "=IIIIQIIQQQQ", ifindex, TCX_HOOKS[direction], 0, 0, ctypes.addressof(ids), _MOST, 0, 0, 0, 0, 0
    )
    _, out = call(_QUERY, attr, f"ask about tcx of device {ifindex}")
    count = struct.unpack_from("=I", out, 24)[0]
    return struct.unpack_from(f"={count}I", ids.raw)
