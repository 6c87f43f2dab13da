"""The mirror of bpf/flannel.h: its constants against the header's text, its records as bytes."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import AbiMismatch
from flannel_ebpf.base.family import Address, Family
from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi, enums, learned, mirror
from flannel_ebpf.contract.record import STRUCTS, Record

HEADER = (Path(__file__).parents[3] / "bpf" / "flannel.h").read_text()
ADDRESS = IPv4Address("10.1.5.2")


def header_enums() -> dict[str, dict[str, int]]:
    """Every enum of the header, evaluated as C does."""
    text = re.sub(r"/\*.*?\*/", "", HEADER, flags=re.S)
    found: dict[str, dict[str, int]] = {}
    for name, body in re.findall(r"enum (\w+) \{(.*?)\};", text, flags=re.S):
        value = -1
        found[name] = {}
        for constant, right in re.findall(r"(\w+)(?:\s*=\s*([^,]+))?,", body):
            one, _, shift = right.partition("<<")
            value = int(one) << int(shift or 0) if right else value + 1
            found[name][constant] = value
    return found


def test_every_enum_equals_the_header() -> None:
    assert header_enums() == enums.ENUMS


def test_every_struct_of_the_header_has_a_mirror() -> None:
    assert (
        set(re.findall(r"^struct (\w+) \{", HEADER, flags=re.M))
        == set(STRUCTS[Family.V4])
        == set(STRUCTS[Family.V6])
    )


def test_every_struct_is_tried_here() -> None:
    assert {kind.c_name for kind in mirror.RECORDS} == set(STRUCTS[Family.V4]) == set(STRUCTS[Family.V6])


def test_count_has_a_field_per_hook() -> None:
    assert [field.name.upper() for field in fields(learned.Count)] == [hook.name for hook in enums.Hook]


def a_record(kind: type[Record], family: Family) -> st.SearchStrategy[Record]:
    """Any instance of a record, with addresses of one family."""
    _, places = STRUCTS[family][kind.c_name]
    hints = get_type_hints(kind)
    return st.builds(kind, **{name: _values(hints[name], places[name][1]) for name in places})


def _values(kind: Any, size: int) -> st.SearchStrategy[Any]:
    if kind == Address:
        return st.ip_addresses(v=4 if size == 4 else 6)
    if kind is Mac:
        return st.binary(min_size=6, max_size=6).map(Mac)
    if kind is bool:
        return st.booleans()
    if kind is bytes:
        return st.binary(min_size=size, max_size=size)
    if kind is int:
        return st.integers(0, 256**size - 1)
    return st.sampled_from(list(kind))


WITH_ADDRESSES = [kind for kind in mirror.RECORDS if Address in get_type_hints(kind).values()]


@pytest.mark.parametrize(
    ("kind", "family"),
    [*((kind, Family.V4) for kind in mirror.RECORDS), *((kind, Family.V6) for kind in WITH_ADDRESSES)],
)
def test_bytes_and_values_are_each_others_inverse(kind: type[Record], family: Family) -> None:
    @given(a_record(kind, family))
    def check(record: Record) -> None:
        data = record.pack()
        assert len(data) == STRUCTS[family][kind.c_name][0]
        assert kind.unpack(data) == record

    check()


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (abi.SubnetKey(24, IPv4Address("10.1.5.0")), "18000000 0a010500"),
        (abi.AddrKey(ADDRESS), "0a010502"),
        (abi.SubnetKey(64, IPv6Address("fc00:0:0:7::")), "40000000 fc000000000000070000000000000000"),
        (
            abi.Peer(
                IPv4Address("192.0.2.7"),
                Mac.parse("c6:d2:32:6f:8f:44"),
                enums.Mode.VXLAN,
                enums.PeerFlag.ON_LINK,
                1500,
                3,
            ),
            "c0000207 c6d2326f8f44 01 01 dc05 0300" + 24 * "00",
        ),
        # ports alone are in network byte order: 0x1f90 is 8080
        (
            learned.FlowKey(ADDRESS, IPv4Address("10.1.6.9"), 8080, 443, 6),
            "0a010502 0a010609 1f90 01bb 06 000000",
        ),
        (abi.Port(enums.PodFlag.SHAPED), "01000000" + 8 * "00"),
        (learned.Traffic(1, 2, 3, 4), "0100000000000000 0200000000000000 0300000000000000 0400000000000000"),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, Record) else "",
)
def test_bytes_on_a_little_endian_machine(record: Record, expected: str) -> None:
    assert record.pack() == bytes.fromhex(expected)


def test_value_too_large_for_its_field_is_named() -> None:
    with pytest.raises(AbiMismatch, match=r"struct fl_peer: .*mtu=65536"):
        abi.Peer(ADDRESS, abi.NO_MAC, enums.Mode.UDP, enums.PeerFlag(0), 65536, 0).pack()
    with pytest.raises(AbiMismatch, match="struct fl_flow_key"):
        learned.FlowKey(ADDRESS, ADDRESS, 65536, 0, 6).pack()


def test_bytes_of_another_size_or_mode_are_refused() -> None:
    with pytest.raises(AbiMismatch, match="struct fl_addr: 0a0105 cannot be one"):
        abi.AddrKey.unpack(b"\x0a\x01\x05")
    peer = abi.Peer(ADDRESS, abi.NO_MAC, enums.Mode.UDP, enums.PeerFlag(0), 1500, 0).pack()
    with pytest.raises(AbiMismatch, match="9 is not a valid Mode"):
        abi.Peer.unpack(peer[:10] + b"\x09" + peer[11:])


def test_bits_of_a_newer_object_survive() -> None:
    raw = b"\x81" + bytes(11)
    assert abi.Port.unpack(raw).pack() == raw


def test_bare_numbers() -> None:
    assert abi.unpack_u32(abi.pack_u32(0xDEADBEEF)) == 0xDEADBEEF
    with pytest.raises(AbiMismatch):
        abi.unpack_u32(b"\x01\x02")


def test_what_programs_write_is_not_planned() -> None:
    peer = abi.Peer(ADDRESS, abi.NO_MAC, enums.Mode.UDP, enums.PeerFlag(0), 1500, 7)
    assert abi.planned_part("fl_peers", replace(peer, tx_until=5, rx_until=6).pack()) == peer.pack()
    assert abi.planned_part("fl_vteps", b"whole") == b"whole"


def test_a_flows_words() -> None:
    at = 5 << learned.TIME_SHIFT
    flow = learned.Flow(tx=0x7FFFFF << 41 | 5, rx=0, ifindex=1, born=0)
    assert (flow.sent, flow.heard, flow.established) == (at, 0, False)
    assert replace(flow, rx=1 << 40 | 5).established


@pytest.mark.parametrize("subnet", ["10.1.5.0/24", "fc00:0:5::/64"])
def test_the_short_ways_are_as_good_as_the_long_ones(subnet: str) -> None:
    network = ip_network(subnet)
    key = abi.SubnetKey(network.prefixlen, network.network_address)
    peer = abi.Peer(network[7], abi.NO_MAC, enums.Mode.VXLAN, enums.PeerFlag.ON_LINK, 1500, 0x102)
    assert abi.pack_subnet(network) == key.pack()
    assert abi.slot_in(peer.pack()) == peer.slot


def test_a_slot_is_read_from_a_peer_alone() -> None:
    with pytest.raises(AbiMismatch, match="struct fl_peer: 00 cannot be one"):
        abi.slot_in(b"\0")
