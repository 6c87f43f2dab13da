import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.packet import Raw

from flannel_ebpf.relay.packet import checksum, decrease_ttl, net_unreachable

NODE = bytes([10, 1, 5, 0])


def header(ttl: int, ident: int = 1, dst: str = "10.1.6.2") -> bytes:
    return bytes(IP(src="10.1.5.2", dst=dst, ttl=ttl, id=ident) / UDP(sport=1, dport=2) / Raw(b"hello"))


@given(st.integers(2, 255), st.integers(0, 65535), st.integers(0, 40))
def test_ttl_goes_down_by_one_and_checksum_stays_right(ttl: int, ident: int, offset: int) -> None:
    packet = bytearray(offset) + header(ttl, ident)
    assert decrease_ttl(packet, offset) == ttl - 1
    assert packet[offset + 8] == ttl - 1
    assert checksum(bytes(packet[offset : offset + 20])) == 0
    assert packet[offset + 12 :] == header(ttl, ident)[12:]


@given(st.integers(0, 0xFFFE))
def test_checksum_is_patched_as_the_kernel_does(check: int) -> None:
    packet = bytearray(header(64))
    struct.pack_into("!H", packet, 10, check)
    decrease_ttl(packet, 0)
    kernel = check + 0x0100
    kernel = (kernel + (kernel >= 0xFFFF)) & 0xFFFF  # include/net/ip.h: ip_decrease_ttl
    assert struct.unpack_from("!H", packet, 10)[0] == kernel


@pytest.mark.parametrize("ttl", [0, 1])
def test_packet_at_its_last_hop_is_left_alone(ttl: int) -> None:
    packet = bytearray(header(ttl))
    assert decrease_ttl(packet, 0) == 0
    assert packet == header(ttl)


def test_net_unreachable_is_flannels() -> None:
    offender = header(64)
    reply = net_unreachable(offender, NODE)
    assert reply is not None
    expected = IP(src="10.1.5.0", dst="10.1.5.2", ttl=8, id=0) / ICMP(type=3, code=0) / Raw(offender[:28])
    assert reply == bytes(expected)


@given(st.integers(0, 7), st.binary(max_size=9))
def test_reply_has_right_checksums_whatever_it_quotes(words: int, rest: bytes) -> None:
    offender = bytearray(header(64)[:20]) + bytes(words * 4) + rest
    offender[0] = 0x45 + words
    reply = net_unreachable(bytes(offender), NODE)
    assert reply is not None
    parsed = IP(reply)
    assert parsed.len == len(reply)
    assert reply[28:] == offender[: 20 + words * 4 + 8]
    assert checksum(reply[:20]) == 0
    assert checksum(reply[20:] + bytes(len(reply) % 2)) == 0


@pytest.mark.parametrize(
    "offender",
    [
        pytest.param(bytes(IP(dst="10.1.9.9") / ICMP()), id="icmp"),
        pytest.param(bytes(IP(dst="10.1.9.9", frag=3, proto=17) / Raw(bytes(8))), id="later fragment"),
        pytest.param(b"\x4f" + header(64)[1:], id="header longer than the packet"),
        pytest.param(b"\x44" + header(64)[1:], id="header too short"),
    ],
)
def test_some_offenders_get_no_reply(offender: bytes) -> None:
    assert net_unreachable(offender, NODE) is None


def test_first_fragment_gets_a_reply() -> None:
    assert net_unreachable(bytes(IP(dst="10.1.9.9", flags="MF", proto=17) / Raw(bytes(8))), NODE)
