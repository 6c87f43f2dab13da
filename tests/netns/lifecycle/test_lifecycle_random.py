"""Foreign changes, restarts and leases in any order: the node ends as it should be.

The same 12 sequences in each run; FLANNEL_TEST_LONG=1 runs 200 that are drawn anew.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from ipaddress import IPv4Network
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from flannel_ebpf.lab import Lab, Node
from tests.netns.labs import MakeLab
from tests.netns.life import ready
from tests.netns.lifecycle.foreign_changes import FAULTS, difference, filled_in, quiet_state, state
from tests.polls import eventually

log = logging.getLogger(__name__)
LONG = bool(os.environ.get("FLANNEL_TEST_LONG"))
SEQUENCES = 200 if LONG else 12
PEERS = range(200, 204)
SETTLED = 30.0
"""Seconds for a state that a few passes must reach."""


class Life(RuleBasedStateMachine):
    """One node between a foreign hand and its daemon; the lab lives on from one sequence to the next."""

    lab: ClassVar[Lab]
    node: ClassVar[Node]
    commands: ClassVar[dict[str, str]]
    subnet: ClassVar[IPv4Network]
    right: ClassVar[str]
    done: ClassVar[Counter[str]] = Counter()

    @rule(fault=st.sampled_from(sorted(FAULTS)))
    def somebody_changes(self, fault: str) -> None:
        self.node.run(["sh", "-c", self.commands[fault]], check=False)
        self.done["changes"] += 1

    @rule()
    def killed(self) -> None:
        if self.node.daemon:
            self.node.kill_daemon()

    @rule()
    def stopped(self) -> None:
        self.node.stop_daemon()

    @rule()
    def started(self) -> None:
        if not self.node.daemon:
            self.node.start_daemon()
            self.done["starts"] += 1

    @rule(number=st.sampled_from(PEERS))
    def a_node_joins(self, number: int) -> None:
        data = {"VNI": 1, "VtepMAC": f"02:00:00:00:01:{number:02x}"}
        value = {"PublicIP": f"192.168.64.{number}", "BackendType": "vxlan", "BackendData": data}
        self.lab.etcdctl("put", key(self.lab, number), json.dumps(value))

    @rule(number=st.sampled_from(PEERS))
    def a_node_leaves(self, number: int) -> None:
        self.lab.etcdctl("del", key(self.lab, number))

    @rule()
    def all_is_as_etcd_says(self) -> None:
        """With a daemon there is a route to every lease, and no other."""
        self.started()
        wanted = {str(subnet) for subnet in self.lab.leases() if subnet != self.subnet}

        def routes() -> set[str]:
            shown = json.loads(self.node.run(["ip", "-json", "route", "show", "dev", "flannel.1"]).stdout)
            return {route["dst"] for route in shown}

        eventually(lambda: present(self.node) and routes() == wanted, f"routes to {wanted}", SETTLED)

    def teardown(self) -> None:
        self.done["sequences"] += 1
        self.started()
        for number in PEERS:
            self.a_node_leaves(number)
        eventually(
            lambda: state(self.node) == self.right, lambda: difference(self.right, state(self.node)), SETTLED
        )


def key(lab: Lab, number: int) -> str:
    return f"{lab.spec.etcd_prefix}/subnets/10.1.{number}.0-24"


def present(node: Node) -> bool:
    return node.run(["ip", "link", "show", "dev", "flannel.1"], check=False).returncode == 0


def test_any_sequence_ends_in_the_right_state(make_lab: MakeLab) -> None:
    lab = make_lab(datapath="ebpf", extra_up_args=("--ip-masq", "--xdp=generic"))
    node, other = lab.nodes
    ready(node)
    Life.lab, Life.node, Life.subnet, Life.right = lab, node, node.subnet, quiet_state(node)
    Life.commands = {name: filled_in(fault.command, node, other) for name, fault in FAULTS.items()}
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=SEQUENCES,
            stateful_step_count=8,
            deadline=None,
            derandomize=not LONG,
            database=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
        ),
    )
    log.info("%s", dict(Life.done))
    assert Life.done["changes"]
    assert Life.done["starts"]


pytestmark = pytest.mark.timeout(1800)
