"""Maps in use as the daemon reads them: an entry that did not change is one and the same object."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import Mode, PeerFlag
from flannel_ebpf.desired.objects import MapEntry
from flannel_ebpf.desired.plan import Put
from flannel_ebpf.kernel.programs.in_use import Datapath
from flannel_ebpf.kernel.programs.loader import LoadRequest


def entry(number: int, slot: int) -> MapEntry:
    subnet = IPv4Network((0x0A010000 + (number << 8), 24))
    peer = abi.Peer(IPv4Address("192.0.2.7"), abi.NO_MAC, Mode.VXLAN, PeerFlag.ON_LINK, 1500, slot)
    return MapEntry("fl_peers", abi.pack_subnet(subnet), peer.pack())


def test_what_was_adopted_is_read_as_the_very_same_objects(request_: LoadRequest) -> None:
    ours = [entry(1, 1), entry(2, 2)]
    other = replace(ours[1], value=entry(2, 9).value)
    with Datapath(request_.network, request_.root, request_.objects, 64, xdp=False) as datapath:
        datapath.load(request_.config)
        assert datapath.apply([Put(ours[0]), Put(other)]) == []
        first = datapath.read()
        assert {id(one) for one in first}.isdisjoint(map(id, ours))
        adopted = datapath.adopt(ours)
        assert [one for one in adopted if one in ours] == [ours[0]]
        for entries in (adopted, datapath.read()):
            assert any(one is ours[0] for one in entries), "equal, so ours from now on"
            assert any(one == other and one is not ours[1] for one in entries), (
                "what differs is as it was read"
            )
