"""Which peers have kernel objects of their own, and what leads to all others."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest

from flannel_ebpf.base.config import HostGwConfig, VxlanConfig
from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.abi import ANY_PEER_MAC
from flannel_ebpf.contract.enums import Cap, Mode
from flannel_ebpf.desired import backends, demand
from flannel_ebpf.desired.backends import Node, Peer
from flannel_ebpf.desired.demand import BACK, FROM, GIVE_WAY, MOST, MOST_NEW, NEEDED, UNUSED
from flannel_ebpf.desired.objects import ANY_PEER_GATEWAY, FdbEntry, Neighbour, Object, Route
from flannel_ebpf.desired.plan import Failure, Put
from flannel_ebpf.desired.short_pass import Settled, admitted
from tests.unit.desired.test_same_key import NODE

OLD, NOW = 1000.0, 2000.0


def subnet(number: int) -> IPv4Network:
    return IPv4Network((0x0A020000 + number * 256, 24))


def peer(number: int, mode: Mode = Mode.VXLAN, mtu: int = 1500) -> Peer:
    mac = None if mode == Mode.DIRECT else Mac.parse(f"02:00:00:00:00:{number:02x}")
    return Peer(subnet(number), IPv4Address(f"192.0.2.{number}"), mode, mtu, True, mac)


def leads_to(objects: list[Object]) -> set[str]:
    return {str(one.dst) for one in objects if isinstance(one, Route)}


def test_all_peers_have_objects_unless_they_come_on_demand() -> None:
    peers = [peer(number) for number in range(3)]
    assert demand.objects(NODE, peers, None) == backends.objects(NODE, peers)


def test_on_demand_the_network_has_one_route_and_peers_in_use_have_theirs() -> None:
    (stack,) = NODE.stacks
    found = demand.objects(NODE, [peer(number) for number in range(3)], {subnet(1)})
    name = backends.overlay_of(stack)
    assert leads_to(found) == {str(stack.network), str(subnet(1))}
    assert Route(stack.network, ANY_PEER_GATEWAY, name, onlink=True) in found
    assert Neighbour(name, ANY_PEER_GATEWAY, ANY_PEER_MAC) in found
    assert [one.dst for one in found if isinstance(one, FdbEntry)] == [IPv4Address("192.0.2.1")]


@pytest.mark.parametrize(
    "odd",
    [
        peer(2, Mode.NONE),
        peer(2, Mode.DIRECT),
        peer(2, mtu=1400),
        replace(peer(2), subnet=IPv4Network("10.2.2.0/25")),
    ],
    ids=["IPsec", "direct", "narrow way", "odd length"],
)
def test_what_bpf_alone_cannot_reach_always_has_objects(odd: Peer) -> None:
    assert str(odd.subnet) in leads_to(demand.objects(NODE, [peer(1), odd], set()))


@pytest.mark.parametrize(
    ("choice", "peers", "before", "expected"),
    [
        ("all", 60_000, True, False),
        ("on-demand", 0, False, True),
        ("auto", FROM - 1, False, False),
        ("auto", FROM, False, True),
        ("auto", BACK, True, True),
        ("auto", BACK - 1, True, False),
    ],
)
def test_when_peers_come_on_demand(choice: str, peers: int, before: bool, expected: bool) -> None:
    assert demand.wanted(choice, peers, before=before) is expected  # type: ignore[arg-type]  # a Literal


def with_backend(backend: object) -> Node:
    (stack,) = NODE.stacks
    return Node((replace(stack, config=replace(stack.config, backend=backend)),))  # type: ignore[arg-type]  # one of them


@pytest.mark.parametrize(
    ("node", "caps", "programs", "why"),
    [
        (NODE, NEEDED, True, ""),
        (NODE, NEEDED, False, "no programs"),
        (NODE, Cap.REDIRECT_NEIGH, True, "Linux 5.13"),
        (with_backend(VxlanConfig(gbp=True)), NEEDED, True, "GBP"),
        (with_backend(HostGwConfig()), NEEDED, True, "host-gw has no device"),
    ],
)
def test_what_keeps_peers_from_coming_on_demand(node: Node, caps: Cap, programs: bool, why: str) -> None:
    found = demand.obstacle(node, caps, programs=programs)
    assert why in found
    assert bool(found) == bool(why)


def test_the_most_asked_for_come_first_and_not_too_many_at_once() -> None:
    used = demand.asked({}, {subnet(number): number for number in range(MOST_NEW + 10)}, NOW)
    assert used == {subnet(number): NOW for number in range(10, MOST_NEW + 10)}


def test_a_scan_of_all_addresses_takes_nothing_from_those_in_use() -> None:
    full = {subnet(number): NOW - GIVE_WAY for number in range(MOST)}
    assert demand.asked(full, {subnet(MOST + 1): 9}, NOW) == full


def test_what_was_not_used_for_a_while_gives_way() -> None:
    full = {subnet(number): NOW - number / MOST * 2 * GIVE_WAY for number in range(MOST)}
    used = demand.asked(full, {subnet(MOST + 1): 9, subnet(MOST + 2): 8}, NOW)
    assert used.keys() - full.keys() == {subnet(MOST + 1), subnet(MOST + 2)}
    assert full.keys() - used.keys() == {subnet(MOST - 1), subnet(MOST - 2)}


def test_what_is_sent_to_stays_and_what_is_not_goes() -> None:
    used = {subnet(1): NOW - UNUSED - 1, subnet(2): NOW - UNUSED - 1, subnet(3): NOW - UNUSED + 1}
    sent = {subnet(2): NOW - 5, subnet(4): NOW - 1, subnet(5): NOW - UNUSED - 1}
    assert demand.still_used(used, sent, NOW) == {
        subnet(2): NOW - 5,
        subnet(3): NOW - UNUSED + 1,
        subnet(4): NOW - 1,
    }


def test_more_than_there_is_room_for_the_latest_stay() -> None:
    sent = {subnet(number): NOW - number / 10 for number in range(MOST + 5)}
    assert demand.still_used({}, sent, NOW).keys() == {subnet(number) for number in range(MOST)}


def test_without_programs_every_peer_they_knew_has_objects() -> None:
    known = {
        subnet(1): abi.Peer(
            IPv4Address("192.0.2.1"), Mac.parse("02:00:00:00:00:01"), Mode.VXLAN, enums.PeerFlag(0), 1500, 1
        ),
        subnet(2): abi.Peer(IPv4Address("192.0.2.2"), abi.NO_MAC, Mode.DIRECT, enums.PeerFlag(0), 1500, 2),
    }
    found = demand.for_all("flannel.1", known)
    expected = [
        one for one in backends.objects(NODE, [peer(1)]) if isinstance(one, Route | Neighbour | FdbEntry)
    ]
    assert set(found) == set(expected)


def test_without_the_way_in_a_node_is_not_ready() -> None:
    (stack,) = NODE.stacks
    for one in demand.way_in(stack):
        assert demand.leads_in(one)
        assert Failure(Put(one), KernelError("no")).weight == "own"


def test_a_peer_comes_into_use_and_goes_out_of_it() -> None:
    peers = {one.subnet: one for one in map(peer, range(3))}
    settled = Settled(NODE, {}, [], peers, [], {}, 8, frozenset({subnet(0)}))
    after, ops = admitted(settled, {subnet(1)})
    assert after.used == {subnet(1)}
    assert [(type(op).__name__, type(op.obj).__name__) for op in ops] == [
        ("Put", "Neighbour"),
        ("Put", "FdbEntry"),
        ("Put", "Route"),
        ("Delete", "Route"),
        ("Delete", "FdbEntry"),
        ("Delete", "Neighbour"),
    ]
    assert admitted(after, {subnet(1)})[1] == []
