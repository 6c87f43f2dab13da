"""Uplinks that live by IPv6's router advertisements, which the kernel ignores once a host forwards.

Containers need forwarding, and a host whose `accept_ra` is 1 loses its default route the moment that is
switched on (net/ipv6/addrconf.c, addrconf_fixup_forwarding), its address when that expires. Network managers
that take advertisements themselves set `accept_ra` to 0, and are not concerned.
"""

from __future__ import annotations

from collections.abc import Iterator

from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import Uplink
from flannel_ebpf.kernel import sysctl
from flannel_ebpf.kernel.seen import Seen

_IFA_F_PERMANENT = 0x80
_RTPROT_RA = 9


def warnings(seen: Seen, uplink: Uplink) -> Iterator[str]:
    """Say what an uplink loses that was advertised; raises KernelError. `uplink` is IPv6's."""
    setting = f"net/ipv6/conf/{uplink.name}/accept_ra"
    if sysctl.read(setting) != "1" or not _advertised(seen, uplink):
        return
    forwards = sysctl.read("net/ipv6/conf/all/forwarding") == "1"
    when = "now that it forwards IPv6" if forwards else "as soon as it forwards IPv6, which pods need"
    dotted = setting.replace(".", "\0").replace("/", ".").replace("\0", "/")
    yield (
        f"{uplink.name} gets its IPv6 address and default route by router advertisements, which this host "
        f"ignores {when}, and so loses: sysctl -w {dotted}=2"
    )


def _advertised(seen: Seen, uplink: Uplink) -> bool:
    """Say whether the uplink's address expires, or its default route came by advertisement."""
    return any(
        one.interface.ip == uplink.ip and not one.flags & _IFA_F_PERMANENT
        for one in seen.addresses(Family.V6)
        if one.ifindex == uplink.ifindex
    ) or any(
        route.dst[1] == 0 and route.oif == uplink.ifindex and route.protocol == _RTPROT_RA
        for route in seen.routes(Family.V6)
    )
