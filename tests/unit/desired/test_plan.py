"""plan(): the operations it returns turn what is there into what should be there, in a safe order."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.model import Mac
from flannel_ebpf.desired.objects import ORDER, FdbEntry, MapEntry, Neighbour, Object, Route, VxlanLink
from flannel_ebpf.desired.plan import Delete, Op, Put, plan

ips = st.integers(0, 7).map(lambda n: IPv4Address(0x0A010000 + n))
macs = st.integers(0, 3).map(lambda n: Mac(bytes([2, 0, 0, 0, 0, n])))
dependents: st.SearchStrategy[Object] = st.one_of(
    st.builds(Neighbour, st.just("flannel.1"), ips, macs),
    st.builds(FdbEntry, st.just("flannel.1"), macs, ips),
    st.builds(Route, ips.map(lambda ip: IPv4Network((ip, 32))), ips, st.just("flannel.1")),
    st.builds(MapEntry, st.just("fl_peers"), st.binary(min_size=1, max_size=1), st.binary(max_size=1)),
)


def state(objects: list[Object]) -> dict[object, Object]:
    return {(type(obj), obj.key): obj for obj in objects}


def carry_out(ops: list[Op], actual: dict[object, Object]) -> dict[object, Object]:
    after = dict(actual)
    for op in ops:
        key = (type(op.obj), op.obj.key)
        if isinstance(op, Put):
            assert after.get(key) == op.old
            after[key] = op.obj
        else:
            assert after.pop(key) == op.obj
    return after


@given(st.lists(dependents), st.lists(dependents))
def test_carrying_out_the_plan_reaches_the_desired_state(desired: list[Object], actual: list[Object]) -> None:
    want, have = state(desired), state(actual)
    ops = plan(want.values(), have.values())
    after = carry_out(ops, have)
    assert after == want
    assert plan(want.values(), after.values()) == []


@given(st.lists(dependents), st.lists(dependents))
def test_changes_come_first_and_deletions_run_backwards(desired: list[Object], actual: list[Object]) -> None:
    ops = plan(desired, actual)
    kinds = [isinstance(op, Delete) for op in ops]
    assert kinds == sorted(kinds)
    puts = [ORDER.index(type(op.obj)) for op in ops if isinstance(op, Put)]
    deletes = [ORDER.index(type(op.obj)) for op in ops if isinstance(op, Delete)]
    assert puts == sorted(puts)
    assert deletes == sorted(deletes, reverse=True)


@given(st.lists(dependents))
def test_nothing_is_deleted_before_the_first_snapshot(actual: list[Object]) -> None:
    assert plan([], actual, may_delete=False) == []


def link(mtu: int = 1450) -> VxlanLink:
    return VxlanLink(
        "flannel.1", 1, 8472, IPv4Address("192.0.2.1"), 2, mtu, Mac(bytes.fromhex("020000000001"))
    )


def test_a_device_change_is_planned_alone() -> None:
    far = IPv4Network("10.1.6.0/24")
    route = Route(far, far.network_address, "flannel.1", onlink=True)
    assert plan([link(), route], []) == [Put(link())]
    assert plan([link(), route], [link(1400)]) == [Put(link(), link(1400))]
    assert plan([link(), route], [link()]) == [Put(route)]


def test_a_foreign_protocol_on_a_wanted_route_is_replaced() -> None:
    far = IPv4Network("10.1.6.0/24")
    ours = Route(far, far.network_address, "flannel.1", onlink=True)
    flanneld = Route(far, far.network_address, "flannel.1", onlink=True, protocol=3)
    assert plan([ours], [flanneld]) == [Put(ours, flanneld)]
