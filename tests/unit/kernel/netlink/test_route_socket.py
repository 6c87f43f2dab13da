"""Attributes and messages of rtnetlink: what is packed is parsed, and no input makes a parser fail."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.kernel.netlink.route_socket import attribute, attributes, messages

kinds = st.integers(min_value=1, max_value=0x3FFF)
payloads = st.binary(max_size=64)


@given(st.dictionaries(kinds, payloads, max_size=12), st.binary(max_size=16))
def test_attributes_round_trip(wanted: dict[int, bytes], head: bytes) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in wanted.items())
    assert len(packed) % 4 == 0
    assert attributes(head + packed, len(head)) == wanted


@given(kinds, payloads)
def test_flags_of_a_type_are_left_out(kind: int, payload: bytes) -> None:
    assert attributes(attribute(kind | 0x8000, payload)) == {kind: payload}


@given(st.binary(max_size=200))
def test_any_octets_are_parsed_to_an_end(data: bytes) -> None:
    assert sum(len(payload) for payload in attributes(data).values()) <= len(data)


@given(st.lists(st.tuples(st.integers(16, 200), st.integers(0, 2**32 - 1), payloads), max_size=8))
def test_messages_of_one_datagram(wanted: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(
        struct.pack("=IHHII", 16 + len(body), kind, 0, 1, port) + body + bytes(-len(body) % 4)
        for kind, port, body in wanted
    )
    assert messages(data) == wanted


@given(st.binary(max_size=200))
def test_any_datagram_is_parsed_to_an_end(data: bytes) -> None:
    assert len(messages(data)) <= len(data) // 16
