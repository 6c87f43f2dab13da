"""A short pass does what a whole one would, or says that it takes a whole one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.family import Family, Network
from flannel_ebpf.base.model import Lease, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.desired import backends
from flannel_ebpf.desired.backends import Node, Stack
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.objects import MapEntry, Object
from flannel_ebpf.desired.plan import Op, Put, plan
from flannel_ebpf.desired.short_pass import Settled, change, follow
from tests.samples import lease as sample
from tests.samples import stack

SIZE = 64
MAC = Mac(bytes.fromhex("020000000001"))
UPLINK = Uplink(3, "eth0", IPv4Address("192.168.64.1"), 24, 1500, MAC)
NETWORKS = {
    "vxlan": '{"Type": "vxlan"}',
    "direct routing": '{"Type": "vxlan", "DirectRouting": true}',
    "host-gw": '{"Type": "host-gw"}',
    "udp": '{"Type": "udp"}',
}
UPLINK6 = replace(UPLINK, ip=IPv6Address("fd00::1"), prefix_len=64)
ADDRESSES = [IPv4Address(f"192.168.64.{n}") for n in range(1, 6)]  # ours among them
ADDRESSES6 = [IPv6Address(f"fd00::{n}") for n in range(1, 6)]
PATHS = {ip: PathFacts(1500 - int(ip) % 2, on_link=int(ip) % 4 != 3) for ip in (*ADDRESSES, *ADDRESSES6)}
State = Mapping[object, Object]
Leases = dict[Network, Lease]


def node(kind: str) -> Node:
    """This node in a network of IPv4, or of both families where the kind's name says "dual"."""
    backend, dual = NETWORKS[kind.removeprefix("dual ")], kind.startswith("dual ")
    family = '"EnableIPv6": true, "IPv6Network": "fc00::/48", ' if dual else ""
    config = parse_network_config(f'{{"Network": "10.1.0.0/16", {family}"Backend": {backend}}}', "test")
    stacks = [stack(config, UPLINK, "10.1.5.0/24", MAC)]
    if dual:
        stacks.append(
            Stack(config, config.pools[1], UPLINK6, UPLINK6.ip, IPv6Network("fc00:0:0:5::/64"), MAC)
        )
    return Node(tuple(stacks))


def lease(subnet: str, ip: str, mac: int = 1, kind: str = "vxlan") -> Lease:
    data = {"VNI": 1, "VtepMAC": f"02:00:00:00:01:{mac:02x}"}
    return sample(subnet, ip, kind, data)


def key(obj: Object) -> object:
    return type(obj), obj.key


def carry_out(ops: Sequence[Op], state: State) -> State:
    after = dict(state)
    for op in ops:
        if isinstance(op, Put):
            assert after.get(key(op.obj)) == op.old
            after[key(op.obj)] = op.obj
        else:
            assert after.pop(key(op.obj)) == op.obj
    return after


def whole(here: Node, leases: Leases, state: State) -> tuple[State, Settled]:
    """Return what a whole pass makes of `state`, and what it leaves."""
    usable, strange = backends.usable(here, leases.values(), {})
    peers, unusable = backends.peers(here, usable, PATHS)
    entries = [obj for obj in state.values() if isinstance(obj, MapEntry)]
    carried = [*contents.carried(peers, here.stacks[0].family)]
    slots = contents.assign_slots(carried, contents.slots_in(entries, carried), SIZE)
    wanted = [*backends.objects(here, peers), *contents.peer_entries(carried, slots)]
    after = state
    while ops := plan(wanted, after.values()):
        after = carry_out(ops, after)
    by_subnet = {peer.subnet: peer for peer in peers}
    return after, Settled(here, {}, [*leases.values()], by_subnet, [*strange, *unusable], slots, SIZE)


odd = st.sampled_from([24] * 8 + [20, 23, 25, 30])
subnets = st.builds(  # ours among them
    lambda n, length: IPv4Network((0x0A010000 + (n << 8), length), strict=False), st.integers(3, 10), odd
)
vteps = st.integers(1, 3).map(lambda n: {"VNI": 1, "VtepMAC": f"02:00:00:00:01:{n:02x}"})
leases = st.builds(
    sample,
    subnets,
    st.sampled_from(ADDRESSES),
    st.sampled_from(["vxlan", "vxlan", "vxlan", "host-gw"]),
    vteps,
    create_revision=st.integers(1, 9),
)
subnets6 = st.integers(3, 10).map(lambda n: IPv6Network((0xFC00 << 112 | n << 64, 64)))
addresses6 = st.sampled_from([*ADDRESSES6, IPv6Address("::")])


def dual(lease: Lease, other: Lease | None) -> Lease:
    """Return a lease with the parts of both."""
    return Lease(lease.parts + other.parts) if other else lease


duals = st.builds(dual, leases, st.none() | st.builds(sample, subnets6, addresses6, st.just("vxlan"), vteps))


def written(before: Leases, step: Sequence[Lease | Network]) -> Leases:
    """Return the leases after some were put and others, given by a subnet, deleted: no subnet is in two."""
    after = dict(before)
    for one in step:
        gone = one.subnets if isinstance(one, Lease) else (one,)
        after = {first: lease for first, lease in after.items() if set(lease.subnets).isdisjoint(gone)}
        if isinstance(one, Lease):
            after[one.subnets[0]] = one
    return after


def histories(lease: st.SearchStrategy[Lease], *subnet: st.SearchStrategy[Network]) -> tuple[Any, Any]:
    """Return strategies of the leases that stand at first, and of what is then done to them."""
    change = st.lists(st.one_of(lease, *subnet), min_size=1, max_size=3)
    return st.lists(lease, max_size=8), st.lists(change, max_size=6)


@given(st.sampled_from(sorted(NETWORKS)), *histories(leases, subnets))
def test_a_short_pass_ends_where_a_whole_one_would(
    kind: str, start: list[Lease], steps: list[list[Lease | Network]]
) -> None:
    follows_rightly(kind, start, steps)


@given(st.sampled_from([f"dual {kind}" for kind in sorted(NETWORKS)]), *histories(duals, subnets, subnets6))
def test_so_it_does_with_both_families(
    kind: str, start: list[Lease], steps: list[list[Lease | Network]]
) -> None:
    follows_rightly(kind, start, steps)


def follows_rightly(kind: str, start: list[Lease], steps: list[list[Lease | Network]]) -> None:
    here = node(kind)
    held = written({}, start)
    state, settled = whole(here, held, {})
    for number, step in enumerate(steps):
        held = written(held, step)
        right, expected = whole(here, held, state)
        done = follow(settled, [*held.values()], change(settled.leases, [*held.values()]), PATHS)
        if done is None:
            state, settled = right, expected.tied(None)
            continue
        settled, ops = done
        state = carry_out(ops, state)
        assert state == right
        assert (settled.peers, settled.slots) == (expected.peers, expected.slots)
        assert list(settled.skipped) == expected.skipped
        length = here.config.pools[0].subnet_len
        both = [
            contents.peer_len(contents.carried(it.peers.values(), Family.V4), length)
            for it in (settled, expected)
        ]
        assert both[0] == both[1]
        if number % 2:  # a whole pass takes over what the short ones know
            tied = expected.tied(settled)
            assert tied.ties is settled.ties
            settled = tied


FIRST = lease("10.1.7.0/24", "192.168.64.2")


def ops_after(settled: Settled, held: Sequence[Lease]) -> list[Op] | None:
    done = follow(settled, held, change(settled.leases, held), PATHS)
    return done and done[1]


def settled_with(*held: Lease, kind: str = "vxlan") -> Settled:
    return whole(node(kind), {one.subnets[0]: one for one in held}, {})[1]


def test_a_crowd_adds_nothing_to_one_lease_s_operations() -> None:
    crowd = [lease(f"10.1.{n}.0/24", f"192.168.65.{n}", n) for n in range(20, 220)]
    new = lease("10.1.8.0/24", "192.168.64.3", mac=2)
    ops = ops_after(settled_with(FIRST, *crowd), [FIRST, *crowd, new])
    assert ops is not None
    assert [type(op.obj).__name__ for op in ops] == [
        "Neighbour", "FdbEntry", "MapEntry", "MapEntry", "Route",
    ]  # fmt: skip


def test_a_renewed_lease_alters_nothing() -> None:
    assert ops_after(settled_with(FIRST), [replace(FIRST, mod_revision=9)]) == []


def test_what_is_known_of_other_peers_counts_for_them_alone() -> None:
    second = lease("10.1.8.0/24", "192.168.64.3", mac=2)
    before = settled_with(FIRST).tied(None)
    for other in (settled_with(second), settled_with(FIRST, kind="host-gw"), settled_with(FIRST, second)):
        tied = other.tied(before)
        assert tied.ties is not before.ties
        assert ops_after(tied, [FIRST]) is not None
    skipping = settled_with(FIRST, lease("10.1.9.0/24", "192.168.64.4", kind="host-gw"))
    assert replace(before, leases=skipping.leases).tied(skipping).ties is not skipping.ties


def test_of_two_nodes_with_one_vtep_the_younger_takes_over_when_the_older_goes() -> None:
    younger = replace(lease("10.1.8.0/24", "192.168.64.3"), create_revision=9)
    settled = settled_with(younger, FIRST)
    assert list(settled.peers) == [*FIRST.subnets]
    assert [(one.key, one.contest) for one in settled.skipped] == [("10.1.8.0/24", True)]
    assert ops_after(settled, [younger]) is None, "that takes a whole pass"
    assert ops_after(settled_with(FIRST), [FIRST, younger]) is None, "likewise"


@pytest.mark.parametrize(
    "new",
    [
        lease("10.1.8.0/24", "192.168.64.3", kind="host-gw"),
        sample("10.1.8.0/24", "192.168.64.3", "vxlan", {"VtepMAC": "nonsense"}),
        lease("10.1.8.0/24", "127.0.0.1"),
        lease("10.9.8.0/24", "192.168.64.3"),
        lease("10.1.8.0/25", "192.168.64.3"),
    ],
    ids=["another backend", "no VTEP", "no node's address", "another network", "another prefix length"],
)
def test_what_takes_a_whole_pass(new: Lease) -> None:
    assert ops_after(settled_with(FIRST), [FIRST, new]) is None
    assert ops_after(settled_with(FIRST, new), [FIRST]) is None, "the way back takes one too"
    assert settled_with(FIRST, new).skipped or new.subnets[0].prefixlen == 25


def test_without_programs_there_are_no_map_entries() -> None:
    kernel_path = replace(settled_with(FIRST), slots=None, size=0)
    ops = ops_after(kernel_path, [FIRST, lease("10.1.8.0/24", "192.168.64.3", mac=2)])
    assert ops
    assert not any(isinstance(op.obj, MapEntry) for op in ops)


def test_a_skipped_lease_that_stays_is_no_matter() -> None:
    odd = lease("10.1.9.0/24", "192.168.64.4", kind="host-gw")
    settled = settled_with(FIRST, odd)
    assert [one.key for one in settled.skipped] == ["10.1.9.0/24"]
    assert isinstance(settled.skipped[0], Skipped)
    assert ops_after(settled, [FIRST, odd, lease("10.1.8.0/24", "192.168.64.3", mac=2)])
