"""Which of our programs stand on which tc hooks, for people and for the lab."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from flannel_ebpf.base.family import Network
from flannel_ebpf.desired.objects import Attach, Direction, filter_handle
from flannel_ebpf.kernel.hooks import clsact, tcx
from flannel_ebpf.kernel.hooks.ownership import name_in, name_of
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.seen import Seen


@dataclass(frozen=True, order=True, slots=True)
class Hook:
    """A hook of a device, how our program there is attached, its name and the kernel's id of it."""

    device: str
    direction: Direction
    via: Attach
    program: str
    prog_id: int


def standing(network: Network | None = None) -> list[Hook]:
    """Return the programs of one network, or of all of ours, in the present namespace; sorted.

    Raises KernelError.
    """
    with RouteSocket() as netlink:
        seen = Seen(netlink)
        names = {index: link.name for index, link in seen.links.items()}
        handle = filter_handle(network) if network else None
        found = [
            *clsact.filters_in(seen, handle),
            *tcx.filters_in(seen, names, partial(name_in, network) if network else name_of),
        ]
    return sorted(
        Hook(names[one.ifindex], one.direction, one.via, one.program, one.prog_id)
        for one in found
        if one.ifindex in names
    )
