"""Our programs on tcx hooks (Linux 6.6), which belong to the device itself and need no qdisc.

The device holds a program as it holds a filter: without link or pin, whatever becomes of the daemon. Ours is
attached behind all others, which so see a packet before a redirect. Layout: union bpf_attr of linux/bpf.h.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterable, Iterator

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.desired.objects import Direction, Filter
from flannel_ebpf.kernel.bpf import TCX_HOOKS, call
from flannel_ebpf.kernel.hooks import ownership
from flannel_ebpf.kernel.seen import Seen

_ATTACH, _DETACH, _LINK_CREATE = 8, 9, 28
_REPLACE = 1 << 2
_GONE = {errno.ENOENT, errno.ENODEV}


def filters_in(seen: Seen, devices: Iterable[int], name_of: Callable[[int], str]) -> Iterator[Filter]:
    """Yield our programs on these devices; `name_of` gives a program's name by its id, "" for a stranger's.

    A kernel without tcx has none. Raises KernelError.
    """
    for ifindex in devices:
        for direction in TCX_HOOKS:
            for program in seen.programs(ifindex, direction):
                name = name_of(program)
                if name:
                    yield Filter(ifindex, direction, name, program, "tcx")


def shaped_devices(seen: Seen, devices: Iterable[int]) -> set[int]:
    """Return those of `devices` with a program that is not ours, which a redirect would pass by."""
    return {ifindex for ifindex in devices if any(has_foreign(seen, ifindex, hook) for hook in TCX_HOOKS)}


def has_foreign(seen: Seen, ifindex: int, direction: Direction) -> bool:
    """Say whether a program that is not ours stands on a device's hook."""
    return any(ownership.is_foreign(one) for one in seen.programs(ifindex, direction))


def put_filter(want: Filter, old: Filter | None, program: int) -> None:
    """Run the program with descriptor `program` at the hook: in `old`'s place, or behind all others.

    Raises BpfError.
    """
    if old is None:
        _change(_ATTACH, want, program)
        return
    with ownership.opened(old.prog_id) as before:
        _change(_ATTACH, want, program, _REPLACE, before.fd)


def delete_filter(there: Filter) -> None:
    """Take our program off the hook; one that is not there, or a device that is gone, is fine.

    Raises BpfError.
    """
    try:
        with ownership.opened(there.prog_id) as program:
            _change(_DETACH, there, program.fd)
    except BpfError as error:
        if error.code not in _GONE:
            raise


def _change(command: int, at: Filter, program: int, flags: int = 0, replaced: int = 0) -> None:
    attr = struct.pack("=IIIIIIQ", at.ifindex, program, TCX_HOOKS[at.direction], flags, replaced, 0, 0)
    call(command, attr, f"tcx {at.direction} of device {at.ifindex}")


def attach_for_now(ifindex: int, direction: Direction, program: int) -> int:
    """Attach by a link and return its descriptor: the program leaves with it, even of a killed process."""
    attr = struct.pack("=IIIIQQ", program, ifindex, TCX_HOOKS[direction], 0, 0, 0)
    return call(_LINK_CREATE, attr, f"link to tcx {direction} of device {ifindex}")[0]
