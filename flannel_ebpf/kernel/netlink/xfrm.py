"""IPsec's outbound policies: what the kernel must encrypt, or stop, once it has built the outer packet.

Layouts: linux/xfrm.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Address, Family, Network
from flannel_ebpf.base.model import PathFacts
from flannel_ebpf.kernel.netlink.route_socket import (
    NLM_F_DUMP,
    NLM_F_REQUEST,
    NLMSG_DONE,
    NLMSG_ERROR,
    RouteSocket,
    attributes,
    messages,
)

_NETLINK_XFRM = 6
_POLICY_NEWS = 1 << 3  # XFRMNLGRP_POLICY, as bind() counts groups
_XFRM_MSG_NEWPOLICY, _XFRM_MSG_GETPOLICY = 0x13, 0x15
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_POLICY_ID = bytes(64)  # xfrm_userpolicy_id: any
_SELECTOR = struct.Struct("=16s16s8xHBBB")  # xfrm_selector: daddr, saddr, family, prefix lengths, protocol
_DIRECTION = struct.Struct("=BB")  # of xfrm_userpolicy_info, behind selector, lifetimes, priority and index
_DIRECTION_AT, _POLICY_SIZE = 160, 168
_XFRM_POLICY_OUT, _XFRM_POLICY_BLOCK = 1, 1
_XFRMA_TMPL = 5


@dataclass(frozen=True, slots=True)
class Policy:
    """What a policy is for: packets from `source` to `target`, `protocol` 0 for all.

    `outbound`: on their way out; other policies are for packets that come in, or through.
    """

    source: Network
    target: Network
    protocol: int
    outbound: bool = True


def policy_news(buffer: int) -> RouteSocket | None:
    """Return a socket that hears of each policy that comes, changes or goes; None on a kernel without IPsec.

    It holds `buffer` octets of messages. Of the network namespace of the calling thread. Raises KernelError.
    """
    try:
        return RouteSocket(_POLICY_NEWS, buffer, _NETLINK_XFRM)
    except KernelError as error:
        if error.code == errno.EPROTONOSUPPORT:
            return None
        raise


def outbound_policies() -> list[Policy]:
    """Return the policies that change or stop packets on their way out; none without IPsec.

    Of the network namespace of the calling thread. Raises KernelError.
    """
    return [policy for policy in policies() if policy.outbound]


def policies() -> list[Policy]:
    """Return all policies that change or stop packets, likewise."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_XFRM) as sock:
            sock.settimeout(10)
            size = _HEADER.size + len(_POLICY_ID)
            sock.send(_HEADER.pack(size, _XFRM_MSG_GETPOLICY, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + _POLICY_ID)
            return list(_policies(sock))
    except OSError as error:
        if error.errno == errno.EPROTONOSUPPORT:
            return []
        raise KernelError(f"reading IPsec policies: {error.strerror or error}", error.errno or 0) from error


def _policies(sock: socket.socket) -> Iterable[Policy]:
    while True:
        for kind, _, body in messages(sock.recv(1 << 16)):
            if kind == NLMSG_DONE:
                return
            if kind == NLMSG_ERROR:
                code = -struct.unpack_from("=i", body)[0]
                raise OSError(code, os.strerror(code))
            if kind == _XFRM_MSG_NEWPOLICY:
                yield from _parse(body)


def _parse(body: bytes) -> Iterator[Policy]:
    """Yield the policy once for each family that it is for."""
    target, source, af, target_len, source_len, protocol = _SELECTOR.unpack_from(body)
    direction, action = _DIRECTION.unpack_from(body, _DIRECTION_AT)
    changes = action == _XFRM_POLICY_BLOCK or _XFRMA_TMPL in attributes(body, _POLICY_SIZE)
    if not changes:
        return
    for family in Family:
        if af in {socket.AF_UNSPEC, family.af} and max(source_len, target_len) <= family.bits:
            octets = family.bits // 8
            yield Policy(
                family.network(source[:octets], source_len, strict=False),
                family.network(target[:octets], target_len, strict=False),
                protocol,
                direction == _XFRM_POLICY_OUT,
            )


def mark_paths(
    paths: Mapping[Address, PathFacts], public_ip: Address, policies: Iterable[Policy]
) -> dict[Address, PathFacts]:
    """Return `paths` with `kernel_only` set where one of the policies is for our tunnel packets."""
    ours = [
        policy
        for policy in policies
        if public_ip in policy.source and policy.protocol in {0, socket.IPPROTO_UDP}
    ]
    if not ours:
        return dict(paths)
    return {
        address: replace(path, kernel_only=True) if any(address in policy.target for policy in ours) else path
        for address, path in paths.items()
    }
