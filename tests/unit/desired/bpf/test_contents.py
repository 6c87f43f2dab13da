"""What the BPF maps should hold of peers and pods."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import Mac, PodPort
from flannel_ebpf.contract import abi, enums
from flannel_ebpf.desired.backends.peer import Peer
from flannel_ebpf.desired.bpf import contents
from flannel_ebpf.desired.bpf.levels import Levels
from flannel_ebpf.desired.objects import MapEntry
from flannel_ebpf.desired.proof.proof import Proof

POD, HERE, THERE = (
    IPv4Address("10.1.5.2"),
    Mac(bytes.fromhex("020000000001")),
    Mac(bytes.fromhex("020000000002")),
)

NO_LEVELS = Levels(Proof())


def learned(ifindex: int = 7, shaped: bool = False) -> MapEntry:
    flags = enums.PodFlag.SHAPED if shaped else enums.PodFlag(0)
    pod = abi.Pod(ifindex=ifindex, mac=HERE, gateway_mac=THERE, flags=flags)
    return MapEntry("fl_pods", abi.AddrKey(addr=POD).pack(), pod.pack())


@pytest.mark.parametrize(
    ("ports", "macs", "stays"),
    [
        ([PodPort(7, "veth7")], {}, True),
        ([PodPort(7, "veth7")], {POD: HERE}, True),
        ([PodPort(7, "veth7")], {POD: THERE}, False),
        ([PodPort(7, "veth7")], {POD: None}, False),
        ([PodPort(8, "veth8")], {POD: HERE}, False),
        ([], {}, False),
    ],
)
def test_a_learned_pod_stays_while_its_veth_lives_and_arp_agrees(
    ports: list[PodPort], macs: dict[IPv4Address, Mac | None], stays: bool
) -> None:
    assert contents.pod_entries([learned()], ports, macs, NO_LEVELS) == ([learned()] if stays else [])


def test_a_pod_that_is_shaped_now_is_marked() -> None:
    found = contents.pod_entries([learned()], [PodPort(7, "veth7", shaped=True)], {}, NO_LEVELS)
    assert found == [learned(shaped=True)]


def test_a_learned_pod_has_the_flags_of_its_level_and_of_its_port() -> None:
    free = Levels(Proof(free=((int(POD), int(POD)),)))
    for shaped, flags in (
        (False, enums.PodFlag.STATELESS),
        (True, enums.PodFlag.STATELESS | enums.PodFlag.SHAPED),
    ):
        [entry] = contents.pod_entries([learned()], [PodPort(7, "veth7", shaped=shaped)], {}, free)
        assert abi.Pod.unpack(entry.value).flags == flags


def test_the_nodes_addresses_are_no_pods() -> None:
    [entry] = contents.node_entries({POD: 4})
    assert abi.AddrKey.unpack(entry.map_key).addr == POD
    assert abi.Pod.unpack(entry.value) == abi.Pod(4, abi.NO_MAC, abi.NO_MAC, enums.PodFlag.NODE)


def test_programs_stand_on_both_ends_of_both_legs() -> None:
    programs = {
        name: at for at, name in enumerate(("fl_from_peer", "fl_to_peer", "fl_from_pod", "fl_to_pod"))
    }
    ports = [PodPort(7, "veth7"), PodPort(8, "veth8", shaped=True)]
    found = contents.filters(ports, 2, 3, programs, "tcx")
    assert {(one.ifindex, one.direction, one.program) for one in found} == {
        *(
            (device, way, name)
            for device in (2, 3)
            for way, name in (("ingress", "fl_from_peer"), ("egress", "fl_to_peer"))
        ),
        (7, "ingress", "fl_from_pod"),
        (7, "egress", "fl_to_pod"),
    }
    assert {one.ifindex for one in contents.filters([], 2, 0, programs, "tcx")} == {2}


def peers(numbers: list[int]) -> list[Peer]:
    return [
        Peer(
            IPv4Network((0x0A010000 + (n << 8), 24)),
            IPv4Address(0xC0A84000 + n),
            enums.Mode.VXLAN,
            1500,
            True,
            HERE,
        )
        for n in numbers
    ]


@given(
    st.lists(st.integers(1, 200), unique=True, max_size=20),
    st.lists(st.integers(1, 200), unique=True, max_size=20),
    st.integers(1, 30),
)
def test_slots_stay_with_their_peers_and_are_never_shared(
    before: list[int], after: list[int], size: int
) -> None:
    first = contents.assign_slots(peers(before), {}, size)
    second = contents.assign_slots(peers(after), first, size)
    used = [slot for slot in second.values() if slot]
    assert len(used) == len(set(used))
    assert all(slot < size for slot in used)
    assert all(second[subnet] == slot for subnet, slot in first.items() if slot and subnet in second)
    assert contents.slots_in(contents.peer_entries(peers(after), second), peers(after)) == second


def test_a_path_larger_than_any_packet_fits_the_contract() -> None:
    """lo's MTU is 65536: a lease whose public IP leads there must not end the daemon."""
    [peer] = peers([7])
    [entry, _] = contents.peer_entries([replace(peer, mtu=65536)], {peer.subnet: 1})
    assert abi.Peer.unpack(entry.value).mtu == 65535


@pytest.mark.parametrize(
    ("backend", "bridges"), [("vxlan", [3, 4]), ("udp", [3, 4]), ("host-gw", [])], ids=str
)
def test_every_bridge_with_pods_gets_headroom_where_headers_are_added(
    backend: str, bridges: list[int]
) -> None:
    config = parse_network_config(
        json.dumps({"Network": "10.1.0.0/16", "Backend": {"Type": backend}}), "a test"
    )
    ports = [PodPort(7, "a", bridge=3), PodPort(8, "b", bridge=4), PodPort(9, "c", 4), PodPort(10, "ptp")]
    found = contents.headroom_ports(config, ports)
    assert sorted(port.bridge for port in found) == bridges
    assert len({port.name for port in found}) == len(found)


@pytest.mark.parametrize(
    ("bridge", "name"),
    [(3, "flannel-h3"), (10, "flannel-ha"), (1_000_000, "flannel-hlfls"), (2**31 - 1, "flannel-hzik0zj")],
)
def test_a_port_has_a_name_however_many_devices_there_were(bridge: int, name: str) -> None:
    assert contents.headroom_name(bridge) == name
    assert len(name) < 16


@pytest.mark.parametrize(
    ("lengths", "length"),
    [([], 24), ([24, 24], 24), ([24, 22, 22], 24), ([25, 25, 22], 25), ([22], 22), ([25, 22], 25)],
)
def test_one_lease_of_another_length_changes_the_programs_of_nobody(lengths: list[int], length: int) -> None:
    found = [peer_of(n, bits) for n, bits in enumerate(lengths, 1)]
    assert contents.peer_len(found, 24) == length
    alike = contents.of_length(found, length)
    entries = contents.peer_entries(found, contents.assign_slots(alike, {}, 8))
    assert [entry.map for entry in entries] == ["fl_peers"] * len(alike) + ["fl_vteps"] * len(found)


def peer_of(number: int, length: int) -> Peer:
    subnet = IPv4Network((0x0A010000 + (number << 10), length))
    return Peer(
        subnet, IPv4Address("192.0.2.0") + number, enums.Mode.VXLAN, 1500, on_link=True, vtep_mac=HERE
    )


def test_aside_every_peer_is_the_kernels_and_all_else_as_it_was() -> None:
    peer = Peer(
        IPv4Network("10.1.7.0/24"),
        IPv4Address("192.0.2.7"),
        enums.Mode.VXLAN,
        1500,
        on_link=True,
        vtep_mac=HERE,
    )
    entries = [*contents.peer_entries([peer], {peer.subnet: 3}), learned()]
    expected = contents.peer_entries([replace(peer, mode=enums.Mode.NONE)], {peer.subnet: 3})[:1]
    assert contents.aside(entries) == expected
