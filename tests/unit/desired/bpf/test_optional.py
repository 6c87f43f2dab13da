"""Extras are wanted until this host refuses them, and no refusal is an error."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import DeviceMissing, KernelError
from flannel_ebpf.base.model import Mac, PodPort, Uplink
from flannel_ebpf.contract.enums import Cap, Check, Fastpath
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.desired.bpf.contents import Settings
from flannel_ebpf.desired.bpf.optional import Extras
from flannel_ebpf.desired.objects import HeadroomPort, Object, Route, XdpProgram
from flannel_ebpf.desired.plan import Delete, Failure, Put
from tests.samples import stack

MAC = Mac(bytes.fromhex("020000000001"))
UPLINK = Uplink(3, "eth0", IPv4Address("192.168.64.1"), 24, 1500, MAC)
CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
NODE = Node((stack(CONFIG, UPLINK, "10.1.5.0/24", MAC),))
PORTS = [PodPort(7, "veth7", bridge=5), PodPort(8, "veth8", bridge=6)]
SETTINGS = Settings(
    fastpath=Fastpath.FLOWS,
    source_check=Check.DROP,
    revalidate_ms=10_000,
    caps=Cap(0),
    sport_min=32768,
    sport_count=28231,
    ttl=64,
    attach="tcx",
    xdp_modes=("native", "generic"),
    headroom=True,
)
HEADROOM: set[Object] = {HeadroomPort("flannel-h5", 5), HeadroomPort("flannel-h6", 6)}
REFUSAL = KernelError("put: Operation not supported", 95)


def wanted(extras: Extras) -> set[Object]:
    return set(extras.wanted(NODE, PORTS, {"fl_xdp": 9}))


def test_without_the_xdp_program_only_headroom_is_wanted() -> None:
    extras = Extras(SETTINGS)
    assert set(extras.wanted(NODE, PORTS, {"fl_from_pod": 4})) == HEADROOM
    assert wanted(extras) == {*HEADROOM, XdpProgram(3, "native", 9)}


def test_a_refused_mode_is_followed_by_the_next_and_at_last_by_none() -> None:
    extras = Extras(SETTINGS)
    native, generic = (Failure(Put(XdpProgram(3, mode, 9)), REFUSAL) for mode in SETTINGS.xdp_modes)
    assert extras.refused([native]) == [native]
    assert wanted(extras) == {*HEADROOM, XdpProgram(3, "generic", 9)}
    assert extras.refused([generic]) == [generic]
    assert wanted(extras) == HEADROOM


def test_several_bridges_may_refuse_headroom_at_once() -> None:
    extras = Extras(SETTINGS)
    failures = [Failure(Put(port), REFUSAL) for port in HEADROOM]
    assert extras.refused(failures) == failures
    assert wanted(extras) == {XdpProgram(3, "native", 9)}


def test_what_is_missing_may_come_again() -> None:
    extras = Extras(SETTINGS)
    before = wanted(extras)
    assert extras.refused([Failure(Put(one), DeviceMissing("no such device", 19)) for one in before]) == []
    assert wanted(extras) == before


def test_other_failures_are_no_refusals() -> None:
    extras = Extras(SETTINGS)
    before = wanted(extras)
    route = Failure(Put(Route(IPv4Network("10.1.6.0/24"), None, "eth0")), REFUSAL)
    removal = Failure(Delete(XdpProgram(3, "native", 8)), REFUSAL)
    assert extras.refused([route, removal]) == []
    assert wanted(extras) == before
