"""The vxlan backend: what of the leases are peers, and what leads to them."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.model import LeasePart, Mac, PathFacts, Uplink
from flannel_ebpf.contract.enums import Mode
from flannel_ebpf.desired.backends import hostgw, udp, vxlan
from flannel_ebpf.desired.backends.peer import Stack
from flannel_ebpf.desired.objects import FdbEntry, LinkAddress, Neighbour, Route, VxlanLink
from tests.samples import stack

MAC, VTEP = Mac(bytes.fromhex("020000000001")), "c6:d2:32:6f:8f:44"
UPLINK = Uplink(3, "eth0", IPv4Address("192.168.64.1"), 24, 1500, MAC)
FAR = IPv4Network("10.1.7.0/24")
PUBLIC = IPv4Address("192.168.64.7")


def node(backend: str) -> Stack:
    config = parse_network_config(f'{{"Network": "10.1.0.0/16", "Backend": {backend}}}', "test")
    return stack(config, UPLINK, "10.1.5.0/24", MAC)


def lease(
    data: Any = None, kind: str = "vxlan", subnet: IPv4Network = FAR, ip: IPv4Address = PUBLIC
) -> LeasePart:
    return LeasePart(subnet, ip, kind, {"VNI": 1, "VtepMAC": VTEP} if data is None else data)


VXLAN = '{"Type": "vxlan"}'


def test_a_peer_has_a_neighbour_an_fdb_entry_and_an_onlink_route() -> None:
    here = node(VXLAN)
    peers, skipped = vxlan.peers(here, [lease()], {})
    assert (len(peers), skipped) == (1, [])
    found = vxlan.objects(here, peers)
    assert {one for one in found if isinstance(one, Neighbour | FdbEntry | Route)} == {
        Neighbour("flannel.1", FAR.network_address, Mac.parse(VTEP)),
        FdbEntry("flannel.1", Mac.parse(VTEP), PUBLIC),
        Route(FAR, FAR.network_address, "flannel.1", onlink=True),
    }
    [device] = [one for one in found if isinstance(one, VxlanLink)]
    assert (device.vni, device.port, device.mtu, device.local, device.parent) == (1, 8472, 1450, UPLINK.ip, 3)


@pytest.mark.parametrize(
    "odd",
    [
        lease(kind="host-gw"),
        lease(kind=""),
        lease(data=[]),
        lease(data={"VNI": 1}),
        lease(data={"VtepMAC": 7}),
        lease(data={"VtepMAC": "nonsense"}),
        lease(data={"VtepMAC": "01:00:5e:00:00:01"}),
        lease(data={"VtepMAC": "00:00:00:00:00:00"}),
        lease(data={"VtepMAC": "ff:ff:ff:ff:ff:ff"}),
    ],
)
def test_an_unusable_lease_is_skipped_with_a_reason(odd: LeasePart) -> None:
    peers, skipped = vxlan.peers(node(VXLAN), [odd, lease(subnet=IPv4Network("10.1.8.0/24"))], {})
    assert [peer.subnet for peer in peers] == [IPv4Network("10.1.8.0/24")]
    assert [one.key for one in skipped] == [str(FAR)]
    assert skipped[0].why


@pytest.mark.parametrize("backend", [vxlan, hostgw, udp])
def test_our_own_leases_are_no_peers(backend: Any) -> None:
    kinds = {vxlan: VXLAN, hostgw: '{"Type": "host-gw"}', udp: '{"Type": "udp"}'}
    here = node(kinds[backend])
    ours = [lease(subnet=here.subnet), lease(ip=UPLINK.ip)]
    assert backend.peers(here, ours, {}) == ([], [])


def test_direct_routing_takes_the_link_where_there_is_one() -> None:
    here = node('{"Type": "vxlan", "DirectRouting": true}')
    away = lease(subnet=IPv4Network("10.1.8.0/24"), ip=IPv4Address("172.16.0.8"))
    paths = {PUBLIC: PathFacts(1500, on_link=True), away.public_ip: PathFacts(1400, on_link=False)}
    peers, _ = vxlan.peers(here, [lease(), away], paths)
    assert [(peer.mode, peer.mtu) for peer in peers] == [(Mode.DIRECT, 1500), (Mode.VXLAN, 1400)]
    routes = [one for one in vxlan.objects(here, peers) if isinstance(one, Route)]
    assert routes[0] == Route(FAR, PUBLIC, "eth0")
    assert routes[1].onlink


@pytest.mark.parametrize(
    ("configured", "path", "mtu"), [(0, 1500, 1500), (1400, 1500, 1400), (1400, 1300, 1300)]
)
def test_bpf_makes_no_packet_larger_than_the_configured_mtu(configured: int, path: int, mtu: int) -> None:
    here = node(json.dumps({"Type": "vxlan", "MTU": configured}))
    peers, _ = vxlan.peers(here, [lease()], {PUBLIC: PathFacts(path, on_link=True)})
    assert [peer.mtu for peer in peers] == [mtu]


def test_host_gw_is_one_plain_route_for_each_peer() -> None:
    here = node('{"Type": "host-gw"}')
    peers, skipped = hostgw.peers(here, [lease(kind="host-gw"), lease()], {})
    assert len(skipped) == 1
    assert hostgw.objects(here, peers) == [Route(FAR, PUBLIC, "eth0")]


def test_udp_is_one_route_for_the_whole_network() -> None:
    here = node('{"Type": "udp"}')
    peers, _ = udp.peers(here, [lease(), lease(kind="", subnet=IPv4Network("10.1.8.0/24"))], {})
    assert len(peers) == 2
    found = udp.objects(here, peers)
    assert [one for one in found if isinstance(one, Route)] == [Route(here.config.network, None, "flannel0")]
    assert any(isinstance(one, LinkAddress) for one in found)
