"""What the kernel's refusals of our operations mean, in one line each."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable

from flannel_ebpf.base.errors import BpfError, DeviceMissing, DeviceUnsupported, KernelError
from flannel_ebpf.desired.objects import (
    FdbEntry,
    Filter,
    HeadroomPort,
    LinkAddress,
    Neighbour,
    Object,
    Route,
    TunLink,
    VxlanLink,
    XdpProgram,
)
from flannel_ebpf.desired.plan import Delete, Failure, Op, Put
from flannel_ebpf.kernel.netlink.iproute import NetlinkError
from flannel_ebpf.kernel.netlink.route_socket import Answer

_ALREADY_GONE = {errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL}
_NO_DEVICE = {errno.ENODEV, errno.ENXIO}


def carry_out(op: Op, action: Callable[[], None]) -> list[Failure]:
    """Do what `op` asks for; return its failure, if it is one: to remove what is gone never is."""
    try:
        action()
    except NetlinkError as error:
        return judge(op, Answer(error.code, _own_words(error), b""))
    except BpfError as error:
        return judge(op, Answer(error.code, "" if error.code else str(error), b""))
    except KernelError as error:
        gone = isinstance(op, Delete) and isinstance(error, DeviceMissing)
        return [] if gone else [Failure(op, error)]
    except OSError as error:
        return judge(op, Answer(error.errno or errno.EIO, "", b""))
    return []


def judge(op: Op, answer: Answer) -> list[Failure]:
    """Return the failure that the kernel's answer to `op` is, if it is one."""
    if not answer.code or (isinstance(op, Delete) and answer.code in _ALREADY_GONE):
        return []
    verb = "put" if isinstance(op, Put) else "delete"
    said = f" ({answer.text})" if answer.text else ""
    if isinstance(op.obj, Route) and answer.code == errno.EEXIST:
        said = " (a route that is not ours has its place)"
    kind = DeviceMissing if answer.code in _NO_DEVICE else KernelError
    if isinstance(op.obj, VxlanLink) and answer.code == errno.EOPNOTSUPP:
        kind = DeviceUnsupported
    message = f"{verb} {described(op.obj)}: {os.strerror(answer.code)}{said}"
    return [Failure(op, kind(message, answer.code))]


def described(obj: Object) -> str:
    """Return the object as `ip` and `tc` would write it."""
    match obj:
        case VxlanLink(name, vni, port, local):
            text = f"device {name} (vxlan id {vni} dstport {port} local {local})"
        case TunLink(name, mtu):
            text = f"device {name} (TUN, mtu {mtu})"
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
