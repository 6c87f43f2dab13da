"""The kernel's networking as one set of objects: read what is ours, apply what should change."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Interface, IPv4Network
from types import TracebackType

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from flannel_ebpf.base.errors import BpfError, DeviceMissing, DeviceUnsupported, KernelError
from flannel_ebpf.desired.objects import (
    FdbEntry,
    Filter,
    HeadroomPort,
    LinkAddress,
    Neighbour,
    Object,
    Route,
    Scope,
    Sysctl,
    VxlanLink,
    XdpMode,
    XdpProgram,
)
from flannel_ebpf.desired.plan import Delete, Failure, Op, Put
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.netlink import bulk, headroom, links, vxlan
from flannel_ebpf.kernel.netlink.route_socket import Answer, Request, RouteSocket
from flannel_ebpf.kernel.pods import Links

_ALREADY_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}
_NO_DEVICE = {errno.ENODEV, errno.ENXIO}


class KernelNetwork:
    """Links, addresses, routes, neighbours, FDB, filters, XDP and sysctls of one network namespace.

    The namespace is that of the thread that makes it, and only that thread may use it.
    """

    def __init__(self) -> None:
        self.netlink = RouteSocket()
        self.links = Links(self.netlink)
        self._ip = IPRoute(ext_ack=True)
        self.echoes: set[bulk.Notice] = set()
        """Notices of our own writes yet to come that the kernel sends in its own name."""

    def __enter__(self) -> KernelNetwork:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the sockets; everything in the kernel stays."""
        self.netlink.close()
        self._ip.close()

    @property
    def ports(self) -> tuple[int, ...]:
        """Our addresses on netlink, by which KernelMonitor tells our own writes."""
        # The library binds its socket at first use; 0 stands for the kernel itself, whose word must be heard.
        return tuple(port for port in (self.netlink.port, self._ip.asyncore.socket.getsockname()[0]) if port)

    def read(
        self,
        scope: Scope,
        *,
        wanted: AbstractSet[IPv4Network] = frozenset(),
        program_name: Callable[[int], str] = lambda _: "",
    ) -> set[Object]:
        """Return every object of this network, and nothing of anybody else's.

        `wanted` are the destinations at which a route that is not ours may be returned, to be adopted.
        `program_name` gives the name of a program of this network by its id, "" for any other.
        Raises KernelError.
        """
        present = links.read_links(self.netlink)
        names = {index: link.name for index, link in present.items()}
        found: set[Object] = set(bulk.read_routes(self.netlink, scope, names, wanted))
        found.update(clsact.read_filters(self.netlink, scope.filter_handle))
        found.update(tcx.read_filters(present, program_name))
        found.update(headroom.read_ports(present.values(), scope))
        for link in present.values():
            if link.xdp_prog and program_name(link.xdp_prog):
                mode: XdpMode = "native" if link.xdp_native else "generic"
                found.add(XdpProgram(link.index, mode, link.xdp_prog))
        for path in scope.sysctls:
            value = sysctl.read(path)
            if value is not None:
                found.add(Sysctl(path, value))
        overlay = next(
            (link for link in present.values() if scope.overlay and link.name == scope.overlay), None
        )
        if overlay:
            found.update(self._read_overlay(scope, overlay))
        return found

    def _read_overlay(self, scope: Scope, link: links.Link) -> Iterator[Object]:
        device = links.vxlan_link(link)
        if device:
            yield device
            yield from bulk.read_neighbours(self.netlink, link.name, link.index)
            yield from bulk.read_fdb(self.netlink, link.name, link.index)
        for address in links.read_addresses(self.netlink, link.index):
            if address.interface.ip in scope.network:
                yield LinkAddress(link.name, address.interface)

    def apply(
        self, ops: Sequence[Op], scope: Scope, programs: Mapping[str, int] | None = None
    ) -> list[Failure]:
        """Carry out every operation, in order; return those that failed. One failure stops no other.

        `programs` gives the descriptor of each program by name, for filters and "fl_xdp".
        """
        failures: list[Failure] = []
        waiting: list[tuple[Op, Request]] = []
        indexes: dict[str, int] = {"": 0}
        for op in ops:
            try:
                if isinstance(op.obj, Route | Neighbour | FdbEntry):
                    waiting.append((op, self._bulk_request(op, op.obj, indexes)))
                    continue
                failures += self._flush(waiting)
                indexes = {"": 0}
                self._apply_one(op, scope, programs or {})
            except KernelError as error:
                if not (isinstance(op, Delete) and isinstance(error, DeviceMissing)):
                    failures.append(Failure(op, error))
        return failures + self._flush(waiting)

    def _bulk_request(self, op: Op, obj: bulk.Bulk, indexes: dict[str, int]) -> Request:
        if obj.ifname not in indexes:
            indexes[obj.ifname] = links.index_of(self.netlink, obj.ifname)
        make = bulk.put_request if isinstance(op, Put) else bulk.delete_request
        return make(obj, indexes[obj.ifname])

    def _flush(self, waiting: list[tuple[Op, Request]]) -> list[Failure]:
        echoes = [bulk.echo(op.obj, gone=isinstance(op, Delete)) for op, _ in waiting]  # type: ignore[arg-type]  # see apply
        self.echoes.update(one for one in echoes if one)
        answers = self.netlink.exchange([request for _, request in waiting])
        failures = []
        for (op, _), answer, echo in zip(waiting, answers, echoes, strict=True):
            if answer.code and echo:
                self.echoes.discard(echo)
            done = not answer.code or (isinstance(op, Delete) and answer.code in _ALREADY_GONE)
            if not done:
                failures.append(Failure(op, _refusal(op, answer)))
        waiting.clear()
        return failures

    def _apply_one(self, op: Op, scope: Scope, programs: Mapping[str, int]) -> None:
        try:
            if isinstance(op, Put):
                self._put(op, scope, programs)
            else:
                self._delete(op.obj, scope)
        except NetlinkError as error:
            if isinstance(op, Delete) and error.code in _ALREADY_GONE:
                return
            raise _refusal(op, Answer(error.code, _own_words(error), b"")) from error
        except BpfError as error:
            raise _refusal(op, Answer(error.code, "", b"")) from error

    def _put(self, op: Put, scope: Scope, programs: Mapping[str, int]) -> None:
        match op.obj:
            case VxlanLink():
                vxlan.put(self._ip, self.netlink, op.obj, op.old if isinstance(op.old, VxlanLink) else None)
            case LinkAddress(ifname, address):
                self._address("replace", ifname, address)
            case Sysctl(path, value):
                sysctl.write(path, value)
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
                raise KernelError(f"{type(op.obj).__name__} is no object of the kernel's networking")

    def _delete(self, obj: Object, scope: Scope) -> None:
        match obj:
            case VxlanLink():
                self._ip.link("del", index=links.index_of(self.netlink, obj.name))
            case LinkAddress(ifname, address):
                self._address("del", ifname, address)
            case Sysctl():
                pass  # a value has no absence; whoever wants another one puts it
            case Filter():
                self._delete_filter(obj, scope)
            case XdpProgram():
                clsact.delete_xdp(self._ip, obj)
            case HeadroomPort():
                headroom.delete_port(self._ip, obj)
            case _:
                raise KernelError(f"{type(obj).__name__} is no object of the kernel's networking")

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

    def _address(self, verb: str, ifname: str, address: IPv4Interface) -> None:
        index = links.index_of(self.netlink, ifname)
        self._ip.addr(verb, index=index, address=str(address.ip), prefixlen=address.network.prefixlen)

    def drop_idle_clsact(self, ifindex: int) -> bool:
        """Remove a device's clsact qdisc if no filter stands on it; say whether it was (for a purge)."""
        try:
            return clsact.drop_idle_clsact(self._ip, self.netlink, ifindex)
        except NetlinkError as error:
            raise KernelError(f"clsact of device {ifindex}: {os.strerror(error.code)}", error.code) from error


def _program(programs: Mapping[str, int], name: str) -> int:
    if name not in programs:
        raise KernelError(f"program {name!r} is not loaded")
    return programs[name]


def _refusal(op: Op, answer: Answer) -> KernelError:
    verb = "put" if isinstance(op, Put) else "delete"
    said = f" ({answer.text})" if answer.text else ""
    kind = DeviceMissing if answer.code in _NO_DEVICE else KernelError
    if isinstance(op.obj, VxlanLink) and answer.code == errno.EOPNOTSUPP:
        kind = DeviceUnsupported
    return kind(f"{verb} {_described(op.obj)}: {os.strerror(answer.code)}{said}", answer.code)


def _described(obj: Object) -> str:
    """Return the object as `ip` and `tc` would write it."""
    match obj:
        case VxlanLink(name, vni, port, local):
            text = f"device {name} (vxlan id {vni} dstport {port} local {local})"
        case LinkAddress(ifname, address):
            text = f"address {address} dev {ifname}"
        case Neighbour(ifname, ip, mac):
            text = f"neighbour {ip} lladdr {mac} dev {ifname}"
        case FdbEntry(ifname, mac, dst):
            text = f"fdb {mac} dst {dst} dev {ifname}"
        case Route(dst, gateway, ifname):
            via, dev = f" via {gateway}" if gateway else "", f" dev {ifname}" if ifname else ""
            text = f"route {dst}{via}{dev}"
        case Filter(ifindex, direction, program, _, via):
            text = f"{program} at {via} {direction} of device {ifindex}"
        case XdpProgram(ifindex, mode):
            text = f"{mode} XDP program of device {ifindex}"
        case HeadroomPort(name, bridge):
            text = f"device {name} (headroom) master {bridge}"
        case _:
            text = str(obj)
    return text


def _own_words(error: NetlinkError) -> str:
    words = error.args[1] if len(error.args) > 1 else ""
    return words if isinstance(words, str) and words != os.strerror(error.code) else ""
