"""The port that gives pods' packets headroom: made, mended, removed, and without effect on its bridge."""

from __future__ import annotations

import json
from typing import Any

import pytest

from flannel_ebpf.base.errors import DeviceMissing
from flannel_ebpf.desired.objects import HeadroomPort, Object
from flannel_ebpf.desired.plan import Delete, Put, plan
from flannel_ebpf.kernel.network import KernelNetwork
from tests.netns.kernel.space import hooked, index_of, run, scope


@pytest.fixture
def bridge(namespace: None) -> int:
    """A bridge that takes MTU and MAC from its one port."""
    run("ip link add br0 type bridge", "ip link set br0 up")
    run("ip link add pod0 mtu 1450 type veth peer pod1", "ip link set pod0 master br0 up")
    return index_of("br0")


def settle(kernel: KernelNetwork, *desired: Object) -> None:
    assert kernel.hooks.apply(plan(desired, hooked(kernel, scope(0))), scope(0), {}) == []
    assert hooked(kernel, scope(0)) == set(desired)


def shown(device: str) -> Any:
    return json.loads(run(f"ip -j -d link show {device}"))[0]


def test_a_port_is_made_and_its_bridge_notices_nothing(kernel: KernelNetwork, bridge: int) -> None:
    before = shown("br0")
    settle(kernel, HeadroomPort("flannel-h9", bridge))
    port = shown("flannel-h9")
    assert port["master"] == "br0"
    assert port["operstate"] == "DOWN"
    assert "headroom" in port["ifalias"]
    after = shown("br0")
    assert (after["mtu"], after["address"]) == (before["mtu"], before["address"])
    assert run("ss -Hlun") == ""
    settle(kernel)
    assert shown("br0")["address"] == before["address"]


@pytest.mark.parametrize("change", ["up", "nomaster"])
def test_a_port_that_somebody_altered_is_mended(kernel: KernelNetwork, bridge: int, change: str) -> None:
    want = HeadroomPort("flannel-h9", bridge)
    settle(kernel, want)
    run(f"ip link set flannel-h9 {change}")
    settle(kernel, want)


def test_every_bridge_has_its_own(kernel: KernelNetwork, bridge: int) -> None:
    run("ip link add br1 type bridge")
    settle(kernel, HeadroomPort("flannel-h9", bridge), HeadroomPort("flannel-h10", index_of("br1")))


def test_a_port_whose_bridge_is_gone_is_removed(kernel: KernelNetwork, bridge: int) -> None:
    settle(kernel, HeadroomPort("flannel-h9", bridge))
    run("ip link del br0")
    [left] = hooked(kernel, scope(0))
    assert kernel.hooks.apply([Delete(left), Delete(left)], scope(0), {}) == []
    assert hooked(kernel, scope(0)) == set()


def test_a_stranger_of_that_name_stays(kernel: KernelNetwork, bridge: int) -> None:
    run("ip link add flannel-h9 type bridge")
    assert hooked(kernel, scope(0)) == set()
    [failure] = kernel.hooks.apply([Put(HeadroomPort("flannel-h9", bridge))], scope(0), {})
    assert "flannel-h9" in str(failure.error)
    assert shown("flannel-h9")["linkinfo"]["info_kind"] == "bridge"


def test_a_bridge_that_is_gone_is_named(kernel: KernelNetwork) -> None:
    [failure] = kernel.hooks.apply([Put(HeadroomPort("flannel-h9", 99))], scope(0), {})
    assert isinstance(failure.error, DeviceMissing)
    assert "master 99" in str(failure.error)
