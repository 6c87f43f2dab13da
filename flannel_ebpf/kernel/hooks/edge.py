"""Our programs on devices' hooks, and the ports that give packets headroom: read, put, removed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from flannel_ebpf.base.errors import DeviceMissing, KernelError
from flannel_ebpf.desired.objects import Filter, HeadroomPort, Object, Scope, XdpMode, XdpProgram
from flannel_ebpf.desired.plan import Failure, Op, Put
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.netlink import headroom
from flannel_ebpf.kernel.netlink.iproute import IPRoute, NetlinkError
from flannel_ebpf.kernel.refusal import carry_out
from flannel_ebpf.kernel.seen import Seen


class Hooks:
    """The hooks of one network namespace, that of the thread that made `ip`."""

    def __init__(self, ip: IPRoute) -> None:
        self._ip = ip

    def read(self, seen: Seen, scope: Scope, program_name: Callable[[int], str]) -> set[Object]:
        """Return every filter, XDP program and headroom port of this network. Raises KernelError.

        `program_name` gives the name of a program of this network by its id, "" for any other.
        """
        found: set[Object] = set(clsact.filters_in(seen, scope.filter_handle))
        found.update(tcx.filters_in(seen, seen.links, program_name))
        found.update(headroom.read_ports(seen.links.values(), scope))
        for link in seen.links.values():
            if link.xdp_prog and program_name(link.xdp_prog):
                mode: XdpMode = "native" if link.xdp_native else "generic"
                found.add(XdpProgram(link.index, mode, link.xdp_prog))
        return found

    def apply(self, ops: Sequence[Op], scope: Scope, programs: Mapping[str, int]) -> list[Failure]:
        """Carry out every operation, in order; return those that failed. One failure stops no other.

        `programs` gives the descriptor of each program by name. A pod's veth that went since it was seen is
        no failure.
        """
        failures: list[Failure] = []
        for op in ops:
            failed = carry_out(op, partial(self._apply_one, op, scope, programs))
            failures += [one for one in failed if not _went(one)]
        return failures

    def _apply_one(self, op: Op, scope: Scope, programs: Mapping[str, int]) -> None:
        if isinstance(op, Put):
            self._put(op, scope, programs)
        else:
            self._delete(op.obj, scope)

    def _put(self, op: Put, scope: Scope, programs: Mapping[str, int]) -> None:
        match op.obj:
            case Filter():
                old_filter = op.old if isinstance(op.old, Filter) else None
                self._put_filter(op.obj, old_filter, scope, _program(programs, op.obj.program))
            case XdpProgram():
                old = op.old if isinstance(op.old, XdpProgram) else None
                clsact.put_xdp(self._ip, op.obj, old, _program(programs, "fl_xdp"))
            case HeadroomPort():
                there = op.old if isinstance(op.old, HeadroomPort) else None
                headroom.put_port(self._ip, op.obj, there, scope)
            case _:
                raise KernelError(f"{type(op.obj).__name__} stands on no hook")

    def _delete(self, obj: Object, scope: Scope) -> None:
        match obj:
            case Filter():
                self._delete_filter(obj, scope)
            case XdpProgram():
                clsact.delete_xdp(self._ip, obj)
            case HeadroomPort():
                headroom.delete_port(self._ip, obj)
            case _:
                raise KernelError(f"{type(obj).__name__} stands on no hook")

    def _put_filter(self, want: Filter, old: Filter | None, scope: Scope, program: int) -> None:
        """Run the program at its hook; one that stands there in the other way leaves only then."""
        moved = old is not None and old.via != want.via
        if want.via == "tcx":
            tcx.put_filter(want, None if moved else old, program)
        else:
            clsact.put_filter(self._ip, want, scope.filter_handle, program)
        if old and moved:
            self._delete_filter(old, scope)

    def _delete_filter(self, there: Filter, scope: Scope) -> None:
        if there.via == "tcx":
            tcx.delete_filter(there)
        else:
            clsact.delete_filter(self._ip, there, scope.filter_handle)

    def drop_idle_clsact(self, seen: Seen, ifindex: int) -> bool:
        """Remove a device's clsact qdisc if no filter stands on it; say whether it was (for a purge)."""
        try:
            return clsact.drop_idle_clsact(self._ip, seen, ifindex)
        except NetlinkError as error:
            raise KernelError(f"clsact of device {ifindex}: {os.strerror(error.code)}", error.code) from error


def _went(failure: Failure) -> bool:
    obj, of_pods = failure.op.obj, ("fl_from_pod", "fl_to_pod")
    return isinstance(obj, Filter) and obj.program in of_pods and isinstance(failure.error, DeviceMissing)


def _program(programs: Mapping[str, int], name: str) -> int:
    if name not in programs:
        raise KernelError(f"program {name!r} is not loaded")
    return programs[name]
