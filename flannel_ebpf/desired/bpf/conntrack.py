"""What conntrack must be told where it sees only part of each connection, because BPF carries the rest.

Kernel: net/netfilter/nf_conntrack_proto_tcp.c.
"""

from __future__ import annotations

from collections.abc import Mapping

from flannel_ebpf.desired.objects import Sysctl

_ROOT = "net/netfilter/nf_conntrack_"
_BE_LIBERAL, _IGNORE_RST, _LOOSE = "tcp_be_liberal", "tcp_ignore_invalid_rst", "tcp_loose"
_ESTABLISHED = "tcp_timeout_established"
_LONGER = ("tcp_timeout_unacknowledged", "tcp_timeout_max_retrans")
_TIMEOUTS = (_ESTABLISHED, "udp_timeout", "udp_timeout_stream", "icmp_timeout")

PATHS = tuple(f"{_ROOT}{name}" for name in (_BE_LIBERAL, _IGNORE_RST, _LOOSE, *_LONGER, *_TIMEOUTS))
"""The values to look at, relative to /proc/sys; some are missing in older kernels and without conntrack."""


def wanted(values: Mapping[str, str]) -> list[Sysctl]:
    """Return the values to set, as far as the kernel has them; `values` are those of PATHS.

    Otherwise what it sees next of a stream is INVALID to it, a reset after 2 GiB too; and "data not yet
    acknowledged" is never cleared, so that an idle connection is forgotten after 300 s instead of five days.
    """
    found = {_BE_LIBERAL: "1", _IGNORE_RST: "1"}
    established = values.get(_ROOT + _ESTABLISHED, "")
    for name in _LONGER:
        if _number(values.get(_ROOT + name, "")) < _number(established):
            found[name] = established
    return [Sysctl(_ROOT + name, value, lent=True) for name, value in found.items() if _ROOT + name in values]


def warnings(values: Mapping[str, str], revalidate: float) -> list[str]:
    """Return what about conntrack's values would let connections break; `revalidate` in seconds."""
    found = []
    if values.get(_ROOT + _LOOSE) == "0":
        found.append(
            f"{_dotted(_LOOSE)} is 0: a connection that conntrack has lost (conntrack -F, a full table) "
            "is not taken up again; 1 is the kernel's default"
        )
    for name in _TIMEOUTS:
        text = values.get(_ROOT + name, "")
        if text and _number(text) <= revalidate:
            found.append(
                f"{_dotted(name)} is {text} s, and --revalidate {revalidate:g} s: conntrack forgets flows "
                f"that BPF carries; give --revalidate less than {text}, or a longer timeout"
            )
    return found


def _dotted(name: str) -> str:
    return (_ROOT + name).replace("/", ".")


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
