"""Which building blocks this kernel has: found by loading and running tiny programs, never by version.

Distributions backport, so a version says nothing. Each program does one thing and returns what the helper
returned; a helper that the kernel lacks fails to load, a flag that it lacks returns -EINVAL when run.
"""

from __future__ import annotations

import os
import struct

from flannel_ebpf.base.errors import BpfError, BpfUnavailable
from flannel_ebpf.contract.enums import Cap
from flannel_ebpf.kernel.bpf import Program, attached_by_tcx
from flannel_ebpf.kernel.hooks import tcx

_ADJUST_ROOM, _CSUM_LEVEL, _REDIRECT_NEIGH, _REDIRECT_PEER, _COARSE_NS = 50, 135, 152, 155, 160
_MODE_MAC = 1  # BPF_ADJ_ROOM_MAC
_FIXED_GSO, _L3_IPV4, _L4_UDP, _NO_CSUM_RESET, _L2_ETH, _DECAP_UDP = (
    1,
    1 << 1,
    1 << 4,
    1 << 5,
    1 << 6,
    1 << 10,
)
_L2_LEN_14 = 14 << 56
_CSUM_DEC = 2
_TC_ACT_REDIRECT = 7
_LOOPBACK = 1
_OVERHEAD = 50
_ENCAP = _FIXED_GSO | _L3_IPV4 | _L4_UDP | _L2_LEN_14

# Ethernet, IPv4 and UDP headers with 100 bytes of payload: enough to shrink by _OVERHEAD as well
_PACKET = (
    bytes.fromhex("020000000001 020000000002 0800")
    + bytes.fromhex("4500008000000000401100000a0000010a000002")
    + struct.pack("!HHHH", 1024, 1024, 108, 0)
    + bytes(100)
)


def probe() -> Cap:
    """Return the building blocks that work here, in a few milliseconds.

    Raises BpfUnavailable when programs cannot be loaded at all (rights, or a kernel without BPF).
    """
    encap = _adjust_room(_OVERHEAD, _ENCAP)
    programs = {
        Cap.REDIRECT_NEIGH: (_redirect(_REDIRECT_NEIGH), _TC_ACT_REDIRECT),
        Cap.REDIRECT_PEER: (_redirect(_REDIRECT_PEER), _TC_ACT_REDIRECT),
        Cap.ENCAP_L2_ETH: (_adjust_room(_OVERHEAD, _ENCAP | _L2_ETH), 0),
        Cap.DECAP_L4_UDP: (encap + _adjust_room(-_OVERHEAD, _FIXED_GSO | _DECAP_UDP), 0),
        Cap.CSUM_LEVEL: (_adjust_room(_OVERHEAD, _ENCAP | _NO_CSUM_RESET) + _csum_level(), 0),
        Cap.COARSE_CLOCK: (_op(0x85, imm=_COARSE_NS), 0),
    }
    _run(b"", 0)  # raises when nothing at all may be loaded
    found = Cap(0)
    for cap, (body, expected) in programs.items():
        if _works(body, expected):
            found |= cap
    return found


def has_tcx() -> bool:
    """Say whether programs can be attached by tcx, and be found there and opened again.

    Tried on the loopback device, with a program that lets every packet go on, and gone again at once.
    """
    nothing = _op(0xB7, imm=-1) + _op(0x95)  # TCX_NEXT
    try:
        with Program.load(nothing, "fl_probe") as program:
            number = program.info().id
            link = tcx.attach_for_now(_LOOPBACK, "ingress", program.fd)
            try:
                found = attached_by_tcx(_LOOPBACK, "ingress")
                Program.by_id(number).close()
            finally:
                os.close(link)
    except BpfError:
        return False
    return number in found


def _works(body: bytes, expected: int) -> bool:
    try:
        return _run(body, expected)
    except BpfUnavailable:
        raise
    except BpfError:
        return False


def _run(body: bytes, expected: int) -> bool:
    # r6 keeps the context, r7 gathers what helpers returned: any failure leaves bits that are not expected
    start = _op(0xBF, dst=6, src=1) + _op(0xB7, dst=7)
    end = _op(0xBF, dst=0, src=7) + _op(0x95)
    with Program.load(start + body + end, "fl_probe") as program:
        return program.test_run(_PACKET).verdict == expected


def _redirect(helper: int) -> bytes:
    # redirect_neigh(ifindex, NULL, 0, 0); redirect_peer(ifindex, 0) ignores the rest
    arguments = _op(0xB7, dst=1, imm=_LOOPBACK) + b"".join(_op(0xB7, dst=reg) for reg in (2, 3, 4))
    return arguments + _call(helper)


def _adjust_room(delta: int, flags: int) -> bytes:
    wide = _op(0x18, dst=4, imm=_signed(flags & 0xFFFFFFFF)) + _op(0, imm=_signed(flags >> 32))
    arguments = _op(0xBF, dst=1, src=6) + _op(0xB7, dst=2, imm=delta) + _op(0xB7, dst=3, imm=_MODE_MAC)
    return arguments + wide + _call(_ADJUST_ROOM)


def _csum_level() -> bytes:
    return _op(0xBF, dst=1, src=6) + _op(0xB7, dst=2, imm=_CSUM_DEC) + _call(_CSUM_LEVEL)


def _call(helper: int) -> bytes:
    return _op(0x85, imm=helper) + _op(0x4F, dst=7, src=0)  # r7 |= r0


def _op(code: int, dst: int = 0, src: int = 0, imm: int = 0) -> bytes:
    # codes used: mov (b7 constant, bf register), or (4f), 64-bit constant (18), call (85), exit (95)
    return struct.pack("=BBhi", code, dst | src << 4, 0, imm)


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word
