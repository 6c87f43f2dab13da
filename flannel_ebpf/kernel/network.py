"""The kernel path of one network: devices, addresses, routes, neighbours, FDB and sysctls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import TypeVar, cast

from flannel_ebpf.base.errors import DeviceMissing, KernelError, edge
from flannel_ebpf.base.family import Address, Family, Interface, Network, family_of
from flannel_ebpf.desired.objects import (
    ROUTE_PROTOCOL,
    FdbEntry,
    LinkAddress,
    Neighbour,
    Object,
    Route,
    Scope,
    Sysctl,
    TunLink,
    VxlanLink,
)
from flannel_ebpf.desired.plan import Delete, Failure, Op, Put
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.hooks.edge import Hooks
from flannel_ebpf.kernel.interest import Interest
from flannel_ebpf.kernel.netlink import bulk, links, routes, tun, vxlan
from flannel_ebpf.kernel.netlink.iproute import IPRoute
from flannel_ebpf.kernel.netlink.recognised import Recognised
from flannel_ebpf.kernel.netlink.route_socket import Request, RouteSocket
from flannel_ebpf.kernel.refusal import carry_out, judge
from flannel_ebpf.kernel.seen import Seen

_IFA_F_NODAD = 0x02
_T = TypeVar("_T")


class KernelNetwork:
    """The sockets to one network namespace, and what the kernel path is made of there.

    The namespace is that of the thread that makes it, and only that thread may use it. `hooks` is the same
    for programs on devices.
    """

    def __init__(self) -> None:
        self.netlink = RouteSocket()
        with edge("netlink"):
            self._ip = IPRoute(ext_ack=True)
        self.hooks = Hooks(self._ip)
        self.echoes: set[bulk.Notice] = set()
        """Notices of our own writes yet to come that the kernel sends in its own name."""
        self.interest = Interest()
        self._routes = {family: Recognised[routes.KernelRoute]() for family in Family}
        self._neighbours = {family: Recognised[Neighbour](bulk.TOLD[family]) for family in Family}
        self._fdb = {family: Recognised[FdbEntry](bulk.TOLD[family]) for family in Family}
        self._own: dict[Family, dict[tuple[routes.KernelRoute, str], Route]] = {}
        self._laid: set[Network] = set()

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

    def look(self) -> Seen:
        """Return the kernel's tables, to be read as they are from now on."""
        return Seen(self.netlink, self._routes, self.interest.networks)

    def read(
        self,
        seen: Seen,
        scope: Scope,
        *,
        wanted: Mapping[Network, Address | None] | None = None,
        known: Mapping[Object, Object] | None = None,
    ) -> list[Object]:
        """Return every object of one family's kernel path, and nothing of anybody else's.

        `wanted` are the destinations at which a route that is not ours may be returned, to be adopted, and by
        way of which address (None: any). An object that `known` has is returned as the one that stands there,
        so that it need not be compared by value. Raises KernelError.
        """
        known = known or {}
        names = {index: link.name for index, link in seen.links.items()}
        found: list[Object] = [*self._read_routes(seen, scope, names, wanted or {}, known)]
        overlay = seen.named.get(scope.overlay)
        if overlay:
            found += self._read_overlay(seen, scope, overlay, known)
        return found

    def sysctls(self, paths: Iterable[str]) -> list[Object]:
        """Return the values at these paths, as far as there are any; raises KernelError."""
        values = {path: sysctl.read(path) for path in paths}
        return [Sysctl(path, value) for path, value in values.items() if value is not None]

    def _read_routes(
        self,
        seen: Seen,
        scope: Scope,
        names: Mapping[int, str],
        wanted: Mapping[Network, Address | None],
        known: Mapping[Object, Object],
    ) -> list[Route]:
        family = family_of(scope.network)
        before, now = self._own.get(family, {}), dict[tuple[routes.KernelRoute, str], Route]()

        def make(route: routes.KernelRoute, ifname: str) -> Route:
            made = before.get((route, ifname))
            if made is None:
                made = _known(known, routes.as_route(family, route, ifname))
                if made.protocol == ROUTE_PROTOCOL:
                    self._laid.add(made.dst)
            now[route, ifname] = made
            return made

        found = routes.own_routes(seen.routes(family), scope, names, wanted, self._laid, make)
        self._own[family] = now
        return found

    def _read_overlay(
        self, seen: Seen, scope: Scope, link: links.Link, known: Mapping[Object, Object]
    ) -> Iterator[Object]:
        family = family_of(scope.network)
        if link.kind == "tun":
            yield TunLink(link.name, link.mtu, link.up)
        device = links.vxlan_link(link)
        if device:
            yield device
            yield from self._neighbours[family].read(
                bulk.dump_neighbours(self.netlink, link.index, family),
                lambda body: _known(known, bulk.as_neighbour(body, link.name, link.index)),
            )
            yield from self._fdb[family].read(
                bulk.dump_fdb(self.netlink, link.index),
                lambda body: _known(known, bulk.as_fdb_entry(body, link.name, link.index)),
            )
        for address in seen.addresses(family):
            if address.ifindex == link.index and address.interface.ip in scope.network:
                yield LinkAddress(link.name, address.interface)

    def apply(self, ops: Sequence[Op]) -> list[Failure]:
        """Carry out every operation, in order; return those that failed. One failure stops no other."""
        failures: list[Failure] = []
        waiting: list[tuple[Op, list[Request]]] = []
        indexes: dict[str, int] = {"": 0}
        for op in ops:
            if isinstance(op.obj, Route | Neighbour | FdbEntry):
                try:
                    waiting.append((op, self._bulk_requests(op, op.obj, indexes)))
                except DeviceMissing as error:
                    failures += [] if isinstance(op, Delete) else [Failure(op, error)]
                continue
            failures += self._flush(waiting)
            indexes = {"": 0}
            failures += carry_out(op, partial(self._apply_one, op))
        return failures + self._flush(waiting)

    def _apply_one(self, op: Op) -> None:
        if isinstance(op, Put):
            self._put(op)
        else:
            self._delete(op.obj)

    def _bulk_requests(self, op: Op, obj: bulk.Bulk, indexes: dict[str, int]) -> list[Request]:
        """Return the requests that `op` takes, of which the last one's answer counts."""
        if isinstance(op, Delete):
            return [bulk.delete_request(obj, self._index(obj.ifname, indexes))]
        first = bulk.in_the_way(op.old, obj)
        before = [bulk.delete_request(first, self._index(first.ifname, indexes))] if first else []
        return [*before, bulk.put_request(obj, op.old, self._index(obj.ifname, indexes))]

    def _index(self, ifname: str, known: dict[str, int]) -> int:
        if ifname not in known:
            known[ifname] = links.index_of(self.netlink, ifname)
        return known[ifname]

    def _flush(self, waiting: list[tuple[Op, list[Request]]]) -> list[Failure]:
        echoes = [bulk.echo(op.obj, gone=isinstance(op, Delete)) for op, _ in waiting]  # type: ignore[arg-type]  # see apply
        self.echoes.update(one for one in echoes if one)
        answers = iter(self.netlink.exchange([request for _, requests in waiting for request in requests]))
        failures = []
        for (op, requests), echo in zip(waiting, echoes, strict=True):
            *_, answer = (next(answers) for _ in requests)
            if answer.code and echo:
                self.echoes.discard(echo)
            failures += judge(op, answer)
            if isinstance(op.obj, Route) and not answer.code:
                (self._laid.add if isinstance(op, Put) else self._laid.discard)(op.obj.dst)
        waiting.clear()
        return failures

    def _put(self, op: Put) -> None:
        match op.obj:
            case VxlanLink():
                vxlan.put(self._ip, self.netlink, op.obj, op.old if isinstance(op.old, VxlanLink) else None)
            case TunLink(name, mtu):
                tun.set_up(self._ip, links.index_of(self.netlink, name), mtu)
            case LinkAddress(ifname, address):
                self._address("replace", ifname, address)
            case Sysctl(path, value):
                sysctl.write(path, value)
            case _:
                raise KernelError(f"{type(op.obj).__name__} is no object of the kernel path")

    def _delete(self, obj: Object) -> None:
        match obj:
            case VxlanLink(name) | TunLink(name):
                self._ip.link("del", index=links.index_of(self.netlink, name))
            case LinkAddress(ifname, address):
                self._address("del", ifname, address)
            case Sysctl():
                pass  # a value has no absence; whoever wants another one puts it
            case _:
                raise KernelError(f"{type(obj).__name__} is no object of the kernel path")

    def _address(self, verb: str, ifname: str, address: Interface) -> None:
        index = links.index_of(self.netlink, ifname)
        family, length = family_of(address), address.network.prefixlen
        # The peers know who has the address: to ask for duplicates first would take a second (RFC 4862).
        flags = {"flags": _IFA_F_NODAD} if family is Family.V6 and verb == "replace" else {}
        self._ip.addr(verb, index=index, family=family.af, address=str(address.ip), prefixlen=length, **flags)


def _known(known: Mapping[Object, Object], one: _T) -> _T:
    """Return the object of `known` that equals this one, if there is one."""
    return cast(_T, known.get(one, one)) if one is not None else one  # type: ignore[call-overload]  # a kind of Object, or None
