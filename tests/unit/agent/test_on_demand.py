"""How a node changes between peers with objects and peers on demand, round by round."""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_ebpf.agent import on_demand
from flannel_ebpf.agent.on_demand import OnDemand
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Network
from flannel_ebpf.contract.enums import Cap, Mode
from flannel_ebpf.desired import demand
from flannel_ebpf.desired.backends import Peer
from flannel_ebpf.desired.objects import Filter
from flannel_ebpf.desired.plan import Failure, Put
from tests.unit.desired.test_same_key import NODE

PEERS = [
    Peer(IPv4Network(f"10.1.{number}.0/24"), IPv4Address(f"192.0.2.{number}"), Mode.VXLAN, 1500, True)
    for number in range(2, 5)
]
FIRST = PEERS[0].subnet
OVERLAY = 7


@dataclass
class Programs:
    """The BPF side as far as this is about it."""

    room: int = 3
    caps: Cap = demand.NEEDED
    packets: dict[Network, int] = field(default_factory=dict)

    def knows(self, peers: int) -> bool:
        return peers <= self.room

    def sent(self) -> dict[Network, float]:
        return {}

    def asked(self) -> dict[Network, int]:
        return self.packets


class Links:
    def index_of(self, name: str) -> int:
        return OVERLAY if name else 0


@pytest.fixture
def programs() -> Programs:
    return Programs()


@pytest.fixture
def one(programs: Programs) -> OnDemand:
    return OnDemand("on-demand", programs)  # type: ignore[arg-type]  # what it needs of a BpfSide


def done(one: OnDemand, *failed: Any) -> None:
    failures = [Failure(Put(obj), KernelError("refused")) for obj in failed]
    one.done(NODE, Links(), failures)  # type: ignore[arg-type]  # what it needs of Seen


def test_the_way_in_stands_before_anything_else_goes(one: OnDemand) -> None:
    assert one.used(NODE, PEERS) == {}
    assert one.opening
    assert one.asked() is None
    done(one)
    assert not one.opening
    assert one.used(NODE, PEERS) == {}
    assert not one.opening


def test_who_is_asked_for_is_in_use(one: OnDemand, programs: Programs) -> None:
    one.used(NODE, PEERS)
    done(one)
    assert one.asked() is None
    programs.packets = {FIRST: 3}
    found = one.asked()
    assert found is not None
    assert found.keys() == {FIRST}
    assert one.asked() is None, "nothing new"
    used = one.used(NODE, PEERS)
    assert used is not None
    assert used.keys() == {FIRST}


@pytest.mark.parametrize(
    "lost",
    [*demand.way_in(NODE.stacks[0]), Filter(OVERLAY, "egress", "fl_to_peer", 1, "tcx")],
    ids=["neighbour", "route", "program"],
)
def test_without_a_way_in_every_peer_has_objects(
    lost: Any, one: OnDemand, monkeypatch: pytest.MonkeyPatch
) -> None:
    one.used(NODE, PEERS)
    done(one, lost)
    assert one.used(NODE, PEERS) is None
    assert "refused" in one.warning
    monkeypatch.setattr(on_demand.time, "monotonic", lambda: 1e12)
    assert one.used(NODE, PEERS) == {}
    assert (one.opening, one.warning) == (True, "")


def test_other_failures_change_nothing(one: OnDemand) -> None:
    one.used(NODE, PEERS)
    done(one, Filter(OVERLAY + 1, "egress", "fl_to_pod", 1, "tcx"))
    assert one.used(NODE, PEERS) == {}


def test_programs_that_are_lost_leave_objects_for_all(one: OnDemand, programs: Programs) -> None:
    one.used(NODE, PEERS)
    done(one)
    programs.room = 2
    assert one.used(NODE, PEERS) is None
    assert "no programs" in one.warning
    assert one.asked() is None


def test_auto_is_silent_where_it_cannot(programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demand, "FROM", 3)
    one = OnDemand("auto", programs)  # type: ignore[arg-type]  # as above
    assert one.used(NODE, PEERS) == {}
    programs.room = 2
    assert one.used(NODE, PEERS) is None
    assert one.warning == ""
