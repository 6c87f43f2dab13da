"""Publishes this node's lease in its node object, and puts it right whenever somebody alters it.

Nothing expires and nothing is renewed: what is written stands until the node is deleted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from flannel_ebpf.base.config import Pool
from flannel_ebpf.base.errors import ConfigError, KubeError, LeaseError, LeaseLost, SourceClosed
from flannel_ebpf.base.model import Claim, Lease, named
from flannel_ebpf.base.say_once import SayOnce
from flannel_ebpf.leases.kube.client import KubeClient
from flannel_ebpf.leases.kube.nodes import (
    BACKEND_DATA,
    BACKEND_TYPE,
    MANAGED,
    PUBLIC_IP,
    KubeNode,
    lease_of,
    notes_of,
    own_subnets,
    read_node,
)

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds after a write, doubling while another is needed: somebody else may write there as well."""
CONDITION = {
    "type": "NetworkUnavailable",
    "status": "False",
    "reason": "FlannelIsUp",
    "message": "Flannel is running on this node",
}
"""What flanneld says once packets can flow; the scheduler keeps pods away from a node that says otherwise."""


class NodeKeeper:
    """The lease of one node. `acquire` first, then `start`; `stop` leaves the annotations, as flannel does.

    `on_lost` is called once, on the keeper's thread, when the node has got other podCIDRs.
    """

    def __init__(self, client: KubeClient, prefix: str, on_lost: Callable[[LeaseLost], None]) -> None:
        self._client = client
        self._prefix = prefix
        self._on_lost = on_lost
        self._name = ""
        self._claim: Claim | None = None
        self._pools: Sequence[Pool] = ()
        self._lease: Lease | None = None
        self._node: KubeNode | None = None
        self._available_for = ""
        self._ready = False
        self._pause = FIRST_PAUSE
        self._wrote_at = 0.0
        self._trouble = SayOnce(log)
        self._wake = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="node-keeper", daemon=True)
        self.reused = False

    @property
    def lease(self) -> Lease:
        """The lease as last written; only after `acquire`."""
        if self._lease is None:
            raise LeaseError("no lease has been acquired yet")
        return self._lease

    def look(self, name: str) -> KubeNode:
        """Return the node called `name` as it is now; raises KubeError."""
        found = self._client.get(f"/api/v1/nodes/{name}")
        node = read_node(found, self._prefix)
        conditions = (found.get("status") or {}).get("conditions") or ()
        if any(CONDITION.items() <= one.items() for one in conditions):
            self._available_for = node.uid
        return node

    def acquire(self, pools: Sequence[Pool], claim: Claim, node: KubeNode) -> Lease:
        """Publish `claim` on `node`, which is our own; `reused` then says if it had a lease before.

        Raises LeaseError while the node has no podCIDRs, or others than the network's; KubeError.
        """
        own_subnets(node, pools)
        self._name, self._pools, self._claim = node.name, pools, claim
        self.reused = node.notes.get(MANAGED) == "true"
        self._write(node, claim)
        return self.lease

    def withdraw(self, node: KubeNode) -> None:
        """Delete the annotations that our lease consists of; an operator's stay. Raises KubeError."""
        own = (MANAGED, BACKEND_TYPE, *PUBLIC_IP.values(), *BACKEND_DATA.values())
        gone = {self._prefix + key: None for key in own if key in node.notes}
        if gone:
            self._client.patch(f"/api/v1/nodes/{node.name}/status", {"metadata": {"annotations": gone}})

    def start(self) -> None:
        """Start keeping the lease."""
        self._thread.start()

    def update(self, claim: Claim) -> None:
        """Publish something else, as soon as the API server answers."""
        if claim.public_ip != self.lease.public_ip:
            self._client.reconnect()
        self._claim = claim
        self._wake.set()

    def observe(self, node: KubeNode | None) -> None:
        """Look after our own node, which is `node` now, None when it is gone; returns at once."""
        self._node = node
        self._wake.set()

    def ready(self) -> None:
        """Say that packets can flow, unless the node says so already."""
        self._ready = True
        self._wake.set()

    def stop(self) -> None:
        """End the thread, once the client is closed."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopped.is_set():
                return
            try:
                wrote = self._keep()
            except LeaseLost as error:
                log.error("%s", error)
                self._on_lost(error)
                return
            except SourceClosed:
                return
            except (KubeError, ConfigError, LeaseError) as error:
                self._trouble.say(str(error))
                self._slow_down()
                self._wake.set()
            else:
                if wrote:
                    self._slow_down()

    def _slow_down(self) -> None:
        now = time.monotonic()
        quiet = now - self._wrote_at > LONGEST_PAUSE
        self._pause = FIRST_PAUSE if quiet else min(self._pause * 2, LONGEST_PAUSE)
        self._wrote_at = now
        self._stopped.wait(self._pause)

    def _keep(self) -> bool:
        """Make our node what it should be, and say whether that took a write.

        Raises LeaseLost, and what kept it from being done.
        """
        node, claim = self._node, self._claim
        if node is None or claim is None:
            self._trouble.say(
                f"node {self._name} is gone from {self._client.server}; everything stays as it is"
            )
            return False
        subnets = own_subnets(node, self._pools)
        if subnets != self.lease.subnets:
            raise LeaseLost(
                f"node {self._name} has podCIDR {named(subnets)} now; ours was {named(self.lease.subnets)}"
            )
        wrote = self._write(node, claim)
        if self._ready and self._available_for != node.uid:
            self._client.patch(self._status, {"status": {"conditions": [_condition()]}})
            self._available_for = node.uid
            wrote = True
        self._trouble.over()
        return wrote

    def _write(self, node: KubeNode, claim: Claim) -> bool:
        """Write those annotations of our lease that `node` has not; raises KubeError, ConfigError."""
        wanted = notes_of(claim, node)
        changed = {key: text for key, text in sorted(wanted.items()) if node.notes.get(key) != text}
        if changed:
            if self._lease is not None and node.notes.get(MANAGED):
                log.info("node %s: writing its %s", self._name, ", ".join(changed))
            notes = {self._prefix + key: text for key, text in changed.items()}
            self._client.patch(self._status, {"metadata": {"annotations": notes}})
        self._node = replace(node, notes={**node.notes, **wanted})
        self._lease = lease_of(self._node, [pool.family for pool in self._pools])
        return bool(changed)

    @property
    def _status(self) -> str:
        return f"/api/v1/nodes/{self._name}/status"


def _condition() -> dict[str, Any]:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {**CONDITION, "lastHeartbeatTime": now, "lastTransitionTime": now}
