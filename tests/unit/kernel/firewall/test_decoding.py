"""What of nftables' and xtables' octets no tool writes easily, or none tells."""

from __future__ import annotations

import struct

import pytest

from flannel_ebpf.desired.proof.packets import Field
from flannel_ebpf.desired.proof.ranges import exactly
from flannel_ebpf.desired.proof.rules import Choose, Drop, Jump, Masked, Perhaps, Step, Touch, Within
from flannel_ebpf.kernel.firewall.decode import loads, lookups, xt_matches, xt_targets
from flannel_ebpf.kernel.firewall.decode.attributes import verdict_in
from flannel_ebpf.kernel.firewall.decode.expressions import decode
from flannel_ebpf.kernel.firewall.decode.loads import EQ, GT, GTE, LT, LTE, NEQ, compare, meta, payload
from flannel_ebpf.kernel.firewall.decode.sets import Contents, Element, contents, ranges_of
from flannel_ebpf.kernel.netlink.route_socket import attribute

DPORT = payload(4, loads.TRANSPORT, 2, 2)
NUMBER = (80).to_bytes(2)


@pytest.mark.parametrize(
    ("operator", "expected"),
    [
        (EQ, ((80, 80),)),
        (NEQ, ((0, 79), (81, 65535))),
        (LT, ((0, 79),)),
        (LTE, ((0, 80),)),
        (GT, ((81, 65535),)),
        (GTE, ((80, 65535),)),
    ],
)
def test_comparisons_of_a_field(operator: int, expected: tuple[tuple[int, int], ...]) -> None:
    assert list(compare(DPORT, operator, NUMBER, 4)) == [Within(Field.DPORT, expected)]


def test_comparison_with_the_first_octets_of_an_address() -> None:
    load = payload(4, loads.NETWORK, 12, 2)
    assert list(compare(load, EQ, bytes([10, 1]), 4)) == [Within(Field.SADDR, ((0x0A010000, 0x0A01FFFF),))]
    assert list(compare(load, LT, bytes([10, 1]), 4)) == [Within(Field.SADDR, ((0, 0x0A00FFFF),))]


def test_comparison_with_octets_inside_an_address() -> None:
    load = payload(4, loads.NETWORK, 15, 1)
    assert list(compare(load, EQ, bytes([7]), 4)) == [Masked(Field.SADDR, 0xFF, 7)]
    assert isinstance(next(iter(compare(load, LT, bytes([7]), 4))), Perhaps)


def test_neighbours_are_compared_together() -> None:
    load = payload(4, loads.NETWORK, 9, 7)  # protocol, checksum, source
    steps = list(compare(load, EQ, bytes([6, 0, 0, 10, 1, 45, 7]), 4))
    assert steps == [Within(Field.PROTOCOL, exactly(6)), Perhaps(load.what, varies=True)]
    assert list(compare(load, NEQ, bytes(7), 4)) == [Perhaps(load.what, varies=True)]


def test_a_key_of_three_fields_has_each_at_four_octets() -> None:
    parts = [payload(4, loads.NETWORK, 16, 4), meta(4, loads.META_L4PROTO), DPORT]
    key = bytes([10, 1, 45, 7, 6, 0, 0, 0]) + NUMBER + bytes(2)
    assert ranges_of(parts, Element(key, key)) == (exactly(0x0A012D07), exactly(6), exactly(80))
    assert ranges_of(parts, Element(key[:9], key[:9])) is None
    content = Contents((Element(key, key, Drop()),))
    assert lookups.choice(parts, content) == Choose(
        (Field.DADDR, Field.PROTOCOL, Field.DPORT),
        (((exactly(0x0A012D07), exactly(6), exactly(80)), Drop()),),
    )


def test_a_set_whose_size_we_do_not_expect_is_not_known() -> None:
    content = Contents((Element(bytes(9), bytes(9)),))
    assert isinstance(lookups.member("@s", [DPORT], content, 4, inverted=False), Perhaps)
    assert not lookups.is_known([DPORT], content)


def test_intervals_that_touch_and_one_without_end() -> None:
    def element(number: int, flags: int = 0) -> bytes:
        key = attribute(1, attribute(1, number.to_bytes(2)))
        return key + attribute(3, flags.to_bytes(4))

    declared = attribute(3, (4).to_bytes(4)) + attribute(5, (2).to_bytes(4))
    found = contents(declared, [element(9), element(5, 1), element(5), element(1), element(7, 1)])
    assert [(int.from_bytes(e.first), int.from_bytes(e.last)) for e in found.elements] == [
        (1, 4),
        (5, 6),
        (9, 0xFFFF),
    ]


@pytest.mark.parametrize(
    ("code", "expected"),
    [(0, Drop()), (-3, Jump("c")), (-4, Jump("c", back=False)), (3 | 7 << 16, Drop("queue")), (-1, None)],
)
def test_verdicts(code: int, expected: object) -> None:
    verdict = attribute(1, code.to_bytes(4, signed=True)) + attribute(2, b"c\0")
    assert verdict_in({2: verdict}) == expected


class Nothing:
    """A table without sets, a host without devices."""

    def contents(self, name: str) -> Contents:
        return Contents()

    def device(self, index: int) -> None:
        return None


def expressions(*found: tuple[str, bytes]) -> dict[int, bytes]:
    listed = b"".join(
        attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, data)) for name, data in found
    )
    return {4: listed}


DROP = ("immediate", attribute(1, bytes(4)) + attribute(2, attribute(2, attribute(1, bytes(4)))))


def test_an_expression_nobody_knows_touches_and_may_write_registers() -> None:
    load = attribute(1, (1).to_bytes(4)) + attribute(2, (16).to_bytes(4))
    compare_tcp = attribute(1, (1).to_bytes(4)) + attribute(2, bytes(4)) + attribute(3, attribute(1, b"\6"))
    rule = decode(expressions(("meta", load), ("novel", b""), ("cmp", compare_tcp), DROP), 4, Nothing())
    assert rule is not None
    assert rule.steps == (Touch("novel"), Perhaps("register", varies=True))


def test_queue_as_an_expression() -> None:
    rule = decode(expressions(("queue", b"")), 4, Nothing())
    assert rule is not None
    assert rule.verdict == Drop("queue")


def test_multiport_of_ports_and_ranges() -> None:
    ports = struct.pack("=15H", 1, 5, 7, 9, *[0] * 11)
    ranges = bytes([0, 1, 0, 0]) + bytes(11)
    for inverted, expected in ((0, ((1, 1), (5, 7), (9, 9))), (1, ((0, 0), (2, 4), (8, 8), (10, 65535)))):
        info = bytes([1, 4]) + ports + ranges + bytes([inverted])
        assert xt_matches.decode("multiport", 1, info, 4) == [Within(Field.DPORT, expected)]


@pytest.mark.parametrize(
    ("name", "info"), [("tcp", b"short"), ("conntrack", bytes(20)), ("nobody knows it", b"")]
)
def test_a_match_that_is_not_as_we_know_it_touches(name: str, info: bytes) -> None:
    assert xt_matches.decode(name, 1, info, 4) == [Touch(f"match {name}")]


def test_a_target_nobody_knows_touches_each_packet() -> None:
    steps: list[Step] = [Touch("NOVEL")]
    assert xt_targets.decode("NOVEL", 0, b"", 4) == (steps, None)
