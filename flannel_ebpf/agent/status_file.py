"""The daemon's report of each pass, for `flannel-ebpf status` (host/report.py has its file)."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.base import tally
from flannel_ebpf.base.model import Lease
from flannel_ebpf.base.one_line import one_line
from flannel_ebpf.base.options import EtcdOptions, KubeOptions, Options
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, Stack
from flannel_ebpf.desired.proof.proof import Proof
from flannel_ebpf.desired.proof.ranges import size
from flannel_ebpf.desired.proof.words import addresses_text
from flannel_ebpf.host import report
from flannel_ebpf.leases.snapshot import View

log = logging.getLogger(__name__)


SHOWN, LONGEST = 50, 500
"""Failures and skipped leases that are written out, and the characters of each."""


MINUTE = 60
"""Seconds; the report would change with every answer of etcd otherwise."""


class Report:
    """Writes the report when it changed; a report that cannot be written is a warning, once."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._written: dict[str, Any] = {}
        self._warned = False

    def write(self, node: Node, lease: Lease, view: View, outcome: Outcome, *, ready: bool) -> None:
        """Replace the report by one of this pass."""
        families = [_of_a_family(stack) for stack in node.stacks]
        errors = [*outcome.errors("own"), *outcome.errors("part")]
        kube = _kube(self._options.kube, lease)
        content = {
            "pid": os.getpid(),
            "etcd_prefix": "" if kube["node"] else self._options.etcd.prefix,
            "backend": node.config.backend_type,
            "uplink": node.uplink.name,
            **families[0],
            "families": families,
            "reservation": lease.etcd_lease == 0 and not kube["node"],
            "datapath": {
                "asked": self._options.datapath,
                "accelerated": outcome.accelerated,
                "attach": outcome.attach,
                "why_not": outcome.why_not,
            },
            "lacks": list(outcome.lacks),
            "peers": {"wanted": outcome.peers, "held": view.doubt},
            "on_demand": -1 if outcome.used is None else outcome.used,
            "pods": outcome.pods,
            "free": size(outcome.proof.free) if outcome.proof else 0,
            "guards": _guards(outcome.proof),
            "skipped": _first([f"{one.key}: {one.why}" for one in (*view.skipped, *outcome.skipped)]),
            "ready": ready,
            "warnings": list(outcome.warnings),
            "failures": _first([str(error) for error in errors]),
            "handed_over": False,
            "etcd": _etcd(EtcdOptions(endpoints=()) if kube["node"] else self._options.etcd),
            "kube": kube,
            "options": {"fastpath": self._options.fastpath, "ip_masq": self._options.ip_masq},
        }
        if content == self._written:
            return
        try:
            report.write(self._options.state_dir, content)
        except OSError as error:
            if not self._warned:
                log.warning("--state-dir: the report cannot be written: %s", error)
            self._warned = True
            return
        self._written = content


def _guards(proof: Proof | None) -> list[dict[str, str]]:
    """Return which addresses are not free of rules, and why."""
    guards = proof.guards[:SHOWN] if proof else ()
    return [
        {
            "addresses": one_line(addresses_text(guard.addresses), LONGEST),
            "level": guard.level.name.lower(),
            "why": one_line(guard.why, LONGEST),
        }
        for guard in guards
    ]


def _of_a_family(stack: Stack) -> dict[str, str]:
    return {
        "network": str(stack.network),
        "overlay": backends.overlay_of(stack),
        "public_ip": str(stack.public_ip),
        "subnet": str(stack.subnet),
    }


def _kube(kube: KubeOptions, lease: Lease) -> dict[str, Any]:
    """Return how the API server is reached, as whose node, and when it last said something, to the minute."""
    on = kube.kube_subnet_mgr
    return {
        "node": lease.key.removeprefix("node ") if on else "",
        "api_url": kube.kube_api_url,
        "kubeconfig_file": kube.kubeconfig_file,
        "annotation_prefix": kube.kube_annotation_prefix if on else "",
        "answered_at": int(tally.MARKS.get("kube_answer", 0)) // MINUTE * MINUTE,
    }


def _etcd(etcd: EtcdOptions) -> dict[str, Any]:
    """Return how etcd is reached, without the password, and when it last answered, to the minute."""
    return {
        "endpoints": list(etcd.endpoints),
        "prefix": etcd.prefix,
        "keyfile": etcd.keyfile,
        "certfile": etcd.certfile,
        "cafile": etcd.cafile,
        "username": etcd.username,
        "answered_at": int(tally.MARKS.get("etcd_answer", 0)) // MINUTE * MINUTE,
    }


def _first(texts: Sequence[str]) -> list[str]:
    """Return the texts, of many the first, and each not longer than a line."""
    shown = [one_line(text, LONGEST) for text in texts[:SHOWN]]
    return [*shown, f"and {len(texts) - SHOWN} more"] if len(texts) > SHOWN else shown
