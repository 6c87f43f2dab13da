"""Filters on clsact hooks and XDP: ours made, replaced and removed; strangers and their qdiscs stay."""

from __future__ import annotations

from collections.abc import Generator
from ipaddress import IPv4Network

import pytest

from flannel_ebpf.base.errors import DeviceMissing
from flannel_ebpf.desired.objects import Filter, Object, XdpProgram
from flannel_ebpf.desired.plan import Delete, Put, plan
from flannel_ebpf.kernel.bpf import Program
from flannel_ebpf.kernel.network import KernelNetwork
from tests.netns.kernel.space import TinyProgram, hooked, index_of, named, run, scope

FOREIGN = "protocol all pref 7 u32 match u32 0 0 classid 1:1"


@pytest.fixture
def tiny() -> Generator[Program, None, None]:
    with TinyProgram.make(name="fl_tiny") as program:
        yield program


@pytest.fixture
def xdp() -> Generator[Program, None, None]:
    with TinyProgram.make(kind=6, name="fl_xdp") as program:
        yield program


def test_filters_are_put_found_and_settled(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    desired: set[Object] = {
        Filter(uplink, "ingress", "fl_from_peer", tiny.info().id, "clsact"),
        Filter(uplink, "egress", "fl_to_peer", tiny.info().id, "clsact"),
        Filter(index_of("up1"), "ingress", "fl_from_pod", tiny.info().id, "clsact"),
    }
    programs = {"fl_from_peer": tiny.fd, "fl_to_peer": tiny.fd, "fl_from_pod": tiny.fd}
    assert kernel.hooks.apply(plan(desired, hooked(kernel, scope(uplink))), scope(uplink), programs) == []
    assert hooked(kernel, scope(uplink)) == desired
    assert plan(desired, hooked(kernel, scope(uplink))) == []
    assert "direct-action" in run("tc filter show dev up0 ingress")


def test_program_is_replaced_in_place(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    first = Filter(uplink, "ingress", "fl_from_peer", tiny.info().id, "clsact")
    kernel.hooks.apply([Put(first)], scope(uplink), {"fl_from_peer": tiny.fd})
    with TinyProgram.make(name="newer") as newer:
        second = Filter(uplink, "ingress", "fl_from_peer", newer.info().id, "clsact")
        ops = plan({second}, hooked(kernel, scope(uplink)))
        assert ops == [Put(second, first)]
        assert kernel.hooks.apply(ops, scope(uplink), {"fl_from_peer": newer.fd}) == []
        assert hooked(kernel, scope(uplink)) == {second}
        assert run("tc filter show dev up0 ingress").count("fl_from_peer") == 1


def test_foreign_filters_stay(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    run("tc qdisc add dev up0 clsact", f"tc filter add dev up0 ingress {FOREIGN}")
    before = run("tc filter show dev up0 ingress")
    ours = Filter(uplink, "ingress", "fl_from_peer", tiny.info().id, "clsact")
    assert kernel.hooks.apply([Put(ours)], scope(uplink), {"fl_from_peer": tiny.fd}) == []
    assert hooked(kernel, scope(uplink)) == {ours}
    assert kernel.hooks.apply([Delete(ours)], scope(uplink), {}) == []
    assert run("tc filter show dev up0 ingress") == before
    assert not kernel.hooks.drop_idle_clsact(kernel.look(), uplink)
    assert "clsact" in run("tc qdisc show dev up0")


def test_networks_on_one_hook_stay_apart(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    other = scope(uplink, network=IPv4Network("10.2.0.0/16"))
    ours = Filter(uplink, "ingress", "fl_from_peer", tiny.info().id, "clsact")
    for where in (scope(uplink), other):
        assert kernel.hooks.apply([Put(ours)], where, {"fl_from_peer": tiny.fd}) == []
    assert kernel.hooks.apply([Delete(ours)], other, {}) == []
    assert hooked(kernel, other) == set()
    assert hooked(kernel, scope(uplink)) == {ours}


def test_idle_clsact_goes_on_purge(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    ours = Filter(uplink, "egress", "fl_to_peer", tiny.info().id, "clsact")
    kernel.hooks.apply([Put(ours)], scope(uplink), {"fl_to_peer": tiny.fd})
    assert not kernel.hooks.drop_idle_clsact(kernel.look(), uplink)
    kernel.hooks.apply([Delete(ours)], scope(uplink), {})
    assert kernel.hooks.drop_idle_clsact(kernel.look(), uplink)
    assert not kernel.hooks.drop_idle_clsact(kernel.look(), uplink)
    assert "clsact" not in run("tc qdisc show dev up0")


def test_deleting_a_filter_that_is_gone_is_no_failure(
    kernel: KernelNetwork, uplink: int, tiny: Program
) -> None:
    gone = [
        Delete(Filter(index, "ingress", "fl_from_pod", tiny.info().id, "clsact")) for index in (uplink, 9999)
    ]
    assert kernel.hooks.apply(gone, scope(uplink), {}) == []
    run("tc qdisc add dev up0 clsact")
    assert kernel.hooks.apply(gone, scope(uplink), {}) == []


def test_filter_on_a_missing_device_is_said(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    lost = Put(Filter(9999, "ingress", "fl_from_peer", tiny.info().id, "clsact"))
    [failure] = kernel.hooks.apply([lost], scope(uplink), {"fl_from_peer": tiny.fd})
    assert isinstance(failure.error, DeviceMissing)
    [failure] = kernel.hooks.apply([lost], scope(uplink), {})
    assert str(failure.error) == "program 'fl_from_peer' is not loaded"


def test_xdp_put_change_of_mode_and_removal(kernel: KernelNetwork, uplink: int, xdp: Program) -> None:
    generic = XdpProgram(uplink, "generic", xdp.info().id)
    native = XdpProgram(uplink, "native", xdp.info().id)
    steps: list[set[Object]] = [{generic}, {native}, {generic}, set()]
    for desired in steps:
        ops = plan(desired, hooked(kernel, scope(uplink), named(xdp)))
        assert kernel.hooks.apply(ops, scope(uplink), {"fl_xdp": xdp.fd}) == []
        assert hooked(kernel, scope(uplink), named(xdp)) == desired
    assert "xdp" not in run("ip link show up0")


def test_xdp_is_replaced_by_a_newer_program(kernel: KernelNetwork, uplink: int, xdp: Program) -> None:
    old = XdpProgram(uplink, "native", xdp.info().id)
    kernel.hooks.apply([Put(old)], scope(uplink), {"fl_xdp": xdp.fd})
    with TinyProgram.make(kind=6, name="newer") as newer:
        new = XdpProgram(uplink, "native", newer.info().id)
        assert kernel.hooks.apply([Put(new, old)], scope(uplink), {"fl_xdp": newer.fd}) == []
        assert hooked(kernel, scope(uplink), lambda _: "fl_xdp") == {new}


@pytest.mark.parametrize("mode", ["generic", "native"])
def test_foreign_xdp_program_stays(kernel: KernelNetwork, uplink: int, xdp: Program, mode: str) -> None:
    with TinyProgram.make(kind=6, name="foreign") as foreign:
        theirs = XdpProgram(uplink, "generic", foreign.info().id)
        kernel.hooks.apply([Put(theirs)], scope(uplink), {"fl_xdp": foreign.fd})
        assert hooked(kernel, scope(uplink), named(xdp)) == set()
        ours = XdpProgram(uplink, "native" if mode == "native" else "generic", xdp.info().id)
        [failure] = kernel.hooks.apply([Put(ours)], scope(uplink), {"fl_xdp": xdp.fd})
        assert failure.error.code != 0
        assert hooked(kernel, scope(uplink), lambda _: "fl_xdp") == {theirs}


def test_a_hundred_pods_are_read_quickly(kernel: KernelNetwork, uplink: int, tiny: Program) -> None:
    desired: set[Object] = set()
    for number in range(100):
        run(f"ip link add p{number} type veth peer q{number}")
        for direction, program in (("ingress", "fl_from_pod"), ("egress", "fl_to_pod")):
            hook = "ingress" if direction == "ingress" else "egress"
            desired.add(Filter(index_of(f"p{number}"), hook, program, tiny.info().id, "clsact"))
    programs = {"fl_from_pod": tiny.fd, "fl_to_pod": tiny.fd}
    assert kernel.hooks.apply(plan(desired, set()), scope(uplink), programs) == []
    assert hooked(kernel, scope(uplink)) == desired
