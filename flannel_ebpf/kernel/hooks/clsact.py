"""Our programs on clsact hooks and on XDP, and what else stands on a device's hooks.

Ours is a filter with our priority and our network's handle, wherever it is. Nothing else is ever
changed: no foreign filter, no qdisc but the clsact that we add where none is (and leave behind, because
without memory nobody knows who made it). Layout: linux/pkt_cls.h.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator

from flannel_ebpf.desired.objects import FILTER_MARK, FILTER_PRIORITY, Direction, Filter, XdpProgram
from flannel_ebpf.kernel.netlink.iproute import IPRoute, NetlinkError
from flannel_ebpf.kernel.netlink.qdiscs import HOOKS, HookFilter
from flannel_ebpf.kernel.netlink.route_socket import U32, attributes
from flannel_ebpf.kernel.seen import Seen

_BPF_NAME, _BPF_FLAGS, _BPF_ID = 7, 8, 11
_BPF_FLAG_ACT_DIRECT = 1
_XDP_UPDATE_IF_NOEXIST = 1
_XDP_MODE = {"generic": 1 << 1, "native": 1 << 2}

_TC_H_ROOT = 0xFFFFFFFF
_ETH_P_ALL = 3

_PLAIN_QDISCS = {"noqueue", "noop", "pfifo_fast", "pfifo", "fq_codel", "fq", "mq"}
_GONE = {errno.ENOENT, errno.ENODEV, errno.EINVAL}


def filters_in(seen: Seen, handle: int | None) -> Iterator[Filter]:
    """Yield the filters with this network's handle, None: of all our networks, wherever a clsact qdisc is."""
    for qdisc in seen.qdiscs:
        if qdisc.kind != "clsact":
            continue
        for direction in HOOKS:
            for found in seen.filters(qdisc.ifindex, direction):
                ours = found.handle == handle or (handle is None and _is_marked(found))
                if ours and found.priority == FILTER_PRIORITY:
                    yield _filter(qdisc.ifindex, direction, found.options)


def _filter(ifindex: int, direction: Direction, options: bytes) -> Filter:
    found = attributes(options)
    name = found.get(_BPF_NAME, b"").rstrip(b"\0").decode(errors="replace")
    direct = U32.unpack(found.get(_BPF_FLAGS, b"\0\0\0\0"))[0] & _BPF_FLAG_ACT_DIRECT
    prog_id = U32.unpack(found.get(_BPF_ID, b"\0\0\0\0"))[0]
    return Filter(ifindex, direction, name, prog_id if direct else 0, "clsact")


def put_filter(ip: IPRoute, want: Filter, handle: int, program: int) -> None:
    """Run the program with descriptor `program` at the hook; ours that is there is replaced atomically.

    Raises NetlinkError.
    """
    try:
        ip.tc("add", "clsact", want.ifindex)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
    ip.tc(
        "replace-filter",
        "bpf",
        want.ifindex,
        handle,
        fd=program,
        name=want.program,
        direct_action=True,
        **_place(want),
    )


def delete_filter(ip: IPRoute, there: Filter, handle: int) -> None:
    """Remove our filter from the hook; a hook without it, or a device that is gone, is fine.

    Raises NetlinkError.
    """
    try:
        ip.tc("del-filter", "bpf", there.ifindex, handle, **_place(there))
    except NetlinkError as error:
        if error.code not in _GONE:
            raise


def _place(at: Filter) -> dict[str, int]:
    return {"parent": HOOKS[at.direction], "prio": FILTER_PRIORITY, "protocol": _ETH_P_ALL}


def put_xdp(ip: IPRoute, want: XdpProgram, old: XdpProgram | None, program: int) -> None:
    """Run `program` at XDP: in place of `old` (ours), or where there is none; never in a stranger's place.

    Raises NetlinkError; EBUSY or EEXIST when another program is there.
    """
    if old is not None and old.mode != want.mode:
        delete_xdp(ip, old)  # the kernel runs one mode at a time
        old = None
    flags = _XDP_MODE[want.mode] | (0 if old else _XDP_UPDATE_IF_NOEXIST)
    _set_xdp(ip, want.ifindex, program, flags)


def delete_xdp(ip: IPRoute, there: XdpProgram) -> None:
    """Detach our XDP program; a device that is gone is fine. Raises NetlinkError."""
    try:
        _set_xdp(ip, there.ifindex, -1, _XDP_MODE[there.mode])
    except NetlinkError as error:
        if error.code != errno.ENODEV:
            raise


def _set_xdp(ip: IPRoute, ifindex: int, program: int, flags: int) -> None:
    ip.link("set", index=ifindex, xdp={"attrs": [("IFLA_XDP_FD", program), ("IFLA_XDP_FLAGS", flags)]})


def drop_idle_clsact(ip: IPRoute, seen: Seen, ifindex: int) -> bool:
    """Remove a clsact qdisc on which no filter stands; say whether it was. Raises NetlinkError.

    Only for a purge: whoever made it loses nothing but an empty qdisc.
    """
    there = any(q.ifindex == ifindex and q.kind == "clsact" for q in seen.qdiscs)
    if not there or any(seen.filters(ifindex, hook) for hook in HOOKS):
        return False
    ip.tc("del", "clsact", ifindex)
    return True


def shaped_devices(seen: Seen, devices: Collection[int]) -> set[int]:
    """Return those of `devices` on which something stands that a redirect would pass by.

    That is a root qdisc that shapes or delays, an `ingress` qdisc (CNI's bandwidth plugin), or a filter
    that is not ours on a clsact hook.
    """
    shaped = set()
    for qdisc in seen.qdiscs:
        if qdisc.ifindex not in devices:
            continue
        if qdisc.kind == "clsact":
            hooked = (seen.filters(qdisc.ifindex, direction) for direction in HOOKS)
            if any(_is_foreign(found) for hook in hooked for found in hook):
                shaped.add(qdisc.ifindex)
        elif qdisc.kind == "ingress" or (qdisc.parent == _TC_H_ROOT and qdisc.kind not in _PLAIN_QDISCS):
            shaped.add(qdisc.ifindex)
    return shaped


def has_foreign(seen: Seen, ifindex: int, direction: Direction) -> bool:
    """Say whether a filter that is not ours stands on a device's clsact hook."""
    return any(_is_foreign(found) for found in seen.filters(ifindex, direction))


def _is_foreign(found: HookFilter) -> bool:
    ours = _is_marked(found) or not found.handle  # 0: the priority's own header
    return found.priority != FILTER_PRIORITY or not ours


def _is_marked(found: HookFilter) -> bool:
    return found.handle & 0xFF000000 == FILTER_MARK
