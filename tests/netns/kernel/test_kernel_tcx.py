"""tcx hooks: ours made, replaced and removed without touching a stranger, and changing to clsact and back."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator
from ipaddress import IPv4Network

import pytest

from flannel_ebpf.base.errors import DeviceMissing
from flannel_ebpf.desired.objects import Attach, Filter, Object
from flannel_ebpf.desired.plan import Delete, Op, Put, plan
from flannel_ebpf.kernel.bpf import TCX_HOOKS, Program, attached_by_tcx, call
from flannel_ebpf.kernel.hooks import tcx
from flannel_ebpf.kernel.network import KernelNetwork
from flannel_ebpf.kernel.programs.probe import has_tcx
from tests.netns.kernel.space import TinyProgram, hooked, index_of, named, run, scope
from tests.netns.tcx_stranger import TCX_DROP, attach, detach

WAYS: list[Attach] = ["tcx", "clsact"]


@pytest.fixture
def ours() -> Generator[Program, None, None]:
    with TinyProgram.make(name="fl_from_peer") as program:
        yield program


@pytest.fixture
def newer() -> Generator[Program, None, None]:
    with TinyProgram.make(name="fl_from_peer") as program:
        yield program


def at(ifindex: int, program: Program, via: Attach = "tcx") -> Filter:
    return Filter(ifindex, "ingress", "fl_from_peer", program.info().id, via)


def settle(kernel: KernelNetwork, uplink: int, want: Object, program: Program, *known: Program) -> list[Op]:
    """Do one pass, check that it leaves exactly `want`, and return what it did."""
    known = (program, *known)
    ops = plan({want}, hooked(kernel, scope(uplink), named(*known)))
    assert kernel.hooks.apply(ops, scope(uplink), {"fl_from_peer": program.fd}) == []
    assert hooked(kernel, scope(uplink), named(*known)) == {want}
    return ops


def test_a_program_is_put_found_and_deleted(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    settle(kernel, uplink, at(uplink, ours), ours)
    assert attached_by_tcx(uplink, "ingress") == (ours.info().id,)
    assert "clsact" not in run("tc qdisc show dev up0"), "no qdisc is needed"
    assert settle(kernel, uplink, at(uplink, ours), ours) == []
    assert kernel.hooks.apply([Delete(at(uplink, ours))], scope(uplink), {}) == []
    assert attached_by_tcx(uplink, "ingress") == ()


@pytest.mark.parametrize("via", WAYS)
def test_a_pod_that_went_while_we_looked_is_no_failure(
    kernel: KernelNetwork, uplink: int, ours: Program, via: Attach
) -> None:
    gone = Filter(12345, "ingress", "fl_from_pod", ours.info().id, via)
    assert kernel.hooks.apply([Put(gone)], scope(uplink), {"fl_from_pod": ours.fd}) == []


def test_a_program_is_replaced_in_its_place(
    kernel: KernelNetwork, uplink: int, ours: Program, newer: Program
) -> None:
    settle(kernel, uplink, at(uplink, ours), ours)
    behind = attach("up0", "ingress")
    assert settle(kernel, uplink, at(uplink, newer), newer, ours) == [
        Put(at(uplink, newer), at(uplink, ours))
    ]
    assert attached_by_tcx(uplink, "ingress") == (newer.info().id, behind)


def test_a_program_stays_when_its_process_has_closed_it(kernel: KernelNetwork, uplink: int) -> None:
    number = attach("up0", "egress")
    assert attached_by_tcx(uplink, "egress") == (number,)


def test_a_stranger_comes_before_us_and_stays(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    stranger = attach("up0", "ingress", "fl_from_pod")  # even under a name of ours
    settle(kernel, uplink, at(uplink, ours), ours)
    assert attached_by_tcx(uplink, "ingress") == (stranger, ours.info().id)
    assert kernel.hooks.apply([Delete(at(uplink, ours))], scope(uplink), {}) == []
    assert attached_by_tcx(uplink, "ingress") == (stranger,)
    assert hooked(kernel, scope(uplink)) == set()


def test_what_a_stranger_decides_holds(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    """Ours runs last: a packet that a stranger drops is dropped."""
    far = f"tcx-{os.getpid()}"
    run(f"ip netns add {far}", f"ip link set up1 netns {far}")
    try:
        run(f"ip -n {far} link set up1 up", f"ip -n {far} address add 192.168.64.9/24 dev up1")
        ping = f"ip netns exec {far} ping -c1 -W1 192.168.64.5"
        settle(kernel, uplink, at(uplink, ours), ours)
        run(ping)
        detach("up0", "ingress")
        attach("up0", "ingress", code=TCX_DROP)
        settle(kernel, uplink, at(uplink, ours), ours)
        with pytest.raises(AssertionError):
            run(ping)
    finally:
        run(f"ip netns del {far}")


def test_networks_on_one_hook_stay_apart(
    kernel: KernelNetwork, uplink: int, ours: Program, newer: Program
) -> None:
    other = scope(uplink, network=IPv4Network("10.2.0.0/16"))
    settle(kernel, uplink, at(uplink, ours), ours)
    theirs = at(uplink, newer)
    assert kernel.hooks.apply([Put(theirs)], other, {"fl_from_peer": newer.fd}) == []
    assert hooked(kernel, scope(uplink), named(ours)) == {at(uplink, ours)}
    assert hooked(kernel, other, named(newer)) == {theirs}
    assert kernel.hooks.apply([Delete(theirs)], other, {}) == []
    assert hooked(kernel, scope(uplink), named(ours)) == {at(uplink, ours)}


@pytest.mark.parametrize("before", WAYS)
@pytest.mark.parametrize("same_program", [True, False])
def test_a_program_changes_from_one_way_to_the_other(
    kernel: KernelNetwork, uplink: int, ours: Program, newer: Program, before: Attach, same_program: bool
) -> None:
    after = WAYS[1 - WAYS.index(before)]
    first, second = at(uplink, newer, before), at(uplink, newer if same_program else ours, after)
    settle(kernel, uplink, first, newer, ours)
    program = newer if same_program else ours
    assert settle(kernel, uplink, second, program, newer, ours) == [Put(second, first)]


@pytest.mark.parametrize("keep", WAYS)
def test_a_change_that_was_cut_short_is_finished(
    kernel: KernelNetwork, uplink: int, ours: Program, keep: Attach
) -> None:
    """Both stand, as after a process that was killed between attaching and detaching."""
    both: list[Op] = [Put(at(uplink, ours, via)) for via in WAYS]
    assert kernel.hooks.apply(both, scope(uplink), {"fl_from_peer": ours.fd}) == []
    ops = settle(kernel, uplink, at(uplink, ours, keep), ours)
    assert [type(op) for op in ops] == [Delete]


def test_the_same_program_twice_is_refused_by_name(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    settle(kernel, uplink, at(uplink, ours), ours)
    [failure] = kernel.hooks.apply([Put(at(uplink, ours))], scope(uplink), {"fl_from_peer": ours.fd})
    assert str(failure.error) == f"put fl_from_peer at tcx ingress of device {uplink}: File exists"
    assert failure.error.code == errno.EEXIST


def test_a_missing_program_or_device_is_no_failure_when_deleting(
    kernel: KernelNetwork, uplink: int, ours: Program
) -> None:
    gone = [Delete(at(index, ours)) for index in (uplink, 9999)]
    gone.append(Delete(Filter(uplink, "ingress", "fl_from_peer", 2**31 - 1, "tcx")))
    assert kernel.hooks.apply(gone, scope(uplink), {}) == []


def test_a_missing_device_is_said(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    [failure] = kernel.hooks.apply([Put(at(9999, ours))], scope(uplink), {"fl_from_peer": ours.fd})
    assert isinstance(failure.error, DeviceMissing)
    run("ip link del up0")
    assert hooked(kernel, scope(uplink), named(ours)) == set()
    assert list(tcx.filters_in(kernel.look(), [uplink], named(ours))) == []


def test_a_full_hook_is_read_whole(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    strangers = tuple(attach("up0", "ingress") for _ in range(62))  # 64, less one that ends the list
    settle(kernel, uplink, at(uplink, ours), ours)
    assert attached_by_tcx(uplink, "ingress") == (*strangers, ours.info().id)


def test_a_bandwidth_plugins_qdisc_may_come_beside_ours(
    kernel: KernelNetwork, uplink: int, ours: Program
) -> None:
    settle(kernel, uplink, at(uplink, ours), ours)
    run("tc qdisc add dev up0 ingress")
    assert settle(kernel, uplink, at(uplink, ours), ours) == []


def test_a_kernel_without_tcx_has_none_of_ours(
    kernel: KernelNetwork, uplink: int, ours: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bpf(2) refuses the attach type, as this one's refuses a number that is none."""
    settle(kernel, uplink, at(uplink, ours), ours)
    monkeypatch.setitem(TCX_HOOKS, "ingress", 9999)
    monkeypatch.setitem(TCX_HOOKS, "egress", 9998)
    assert not has_tcx()
    assert hooked(kernel, scope(uplink), named(ours)) == set()
    assert tcx.shaped_devices(kernel.look(), [uplink]) == set()


def test_the_probe_tries_and_leaves_nothing(namespace: None) -> None:
    with open("/proc/kallsyms") as symbols:
        there = any(line.split()[2] == "tcx_prog_attach" for line in symbols)
    assert has_tcx() == there
    assert attached_by_tcx(1, "ingress") == ()


def test_the_probe_wants_to_find_its_program_again(namespace: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """BPF_PROG_GET_FD_BY_ID takes CAP_SYS_ADMIN, and without it we would not know our own."""

    def without_ids(command: int, attr: bytes, what: str) -> tuple[int, bytes]:
        return call(9999 if command == 13 else command, attr, what)

    monkeypatch.setattr("flannel_ebpf.kernel.bpf.programs.call", without_ids)
    assert not has_tcx()


def test_many_pods_are_read_in_little_time(kernel: KernelNetwork, uplink: int, ours: Program) -> None:
    for number in range(50):
        run(f"ip link add p{number} type veth peer q{number}")
    desired: set[Object] = {at(index_of(f"p{number}"), ours) for number in range(50)}
    assert kernel.hooks.apply(plan(desired, set()), scope(uplink), {"fl_from_peer": ours.fd}) == []
    assert hooked(kernel, scope(uplink), named(ours)) == desired
