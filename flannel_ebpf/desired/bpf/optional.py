"""What packets are better off with and can do without: an XDP program, and headroom on the pods' bridges."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from flannel_ebpf.base.errors import DeviceMissing
from flannel_ebpf.base.model import PodPort
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.objects import HeadroomPort, Object, XdpProgram
from flannel_ebpf.desired.plan import Failure, Put

log = logging.getLogger(__name__)


class Extras:
    """Wants each extra until this host refuses it: to ask for the same again cannot help."""

    def __init__(self, settings: contents.Settings) -> None:
        self._xdp_modes = list(settings.xdp_modes)
        self._headroom = settings.headroom

    def wanted(self, node: Node, ports: Sequence[PodPort], programs: Mapping[str, int]) -> list[Object]:
        """Return the extras to have; `programs` are the ids of the loaded programs by name."""
        found: list[Object] = list(contents.headroom_ports(node.config, ports)) if self._headroom else []
        if "fl_xdp" in programs and self._xdp_modes:
            found.append(XdpProgram(node.uplink.ifindex, self._xdp_modes[0], programs["fl_xdp"]))
        return found

    def refused(self, failures: Sequence[Failure]) -> list[Failure]:
        """Return which failures are refusals of an extra, say so once, and want that no more.

        The next XDP mode takes the place of a refused one. A device that is missing refuses nothing: uplink
        and bridges may go away at any time, and come again.
        """
        found = []
        for failure in failures:
            if not isinstance(failure.op, Put) or isinstance(failure.error, DeviceMissing):
                continue
            match failure.op.obj:
                case XdpProgram(_, mode):
                    self._xdp_modes.remove(mode)
                    left = " or ".join(self._xdp_modes) or "none"
                    log.warning(
                        "uplink refuses XDP in %s mode, left to try: %s: %s", mode, left, failure.error
                    )
                case HeadroomPort():
                    self._headroom = False
                    log.warning("pods' packets get no headroom: %s", failure.error)
                case _:
                    continue
            found.append(failure)
        return found
