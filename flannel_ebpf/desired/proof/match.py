"""Which packets pass a test: all of a set, none, or perhaps some.

Each function returns the packets that pass and those that do not; what perhaps passes is in both.
"""

from __future__ import annotations

from collections.abc import Mapping

from flannel_ebpf.desired.proof.packets import ICMP, ICMPV6, TCP, Field, Packets, joined, split
from flannel_ebpf.desired.proof.ranges import NOTHING, Ranges, either, exactly, points, without
from flannel_ebpf.desired.proof.rules import AddressType, Among, Choose, Masked, Within

Match = tuple[Packets | None, Packets | None]

_FEW = 256
"""Values of a field that are tried one by one: all of an octet."""
_OF_PROTOCOL = {Field.ICMP_TYPE, Field.TCP_FLAGS}


def _only(field: Field, piece: Packets) -> Ranges:
    if field == Field.TCP_FLAGS:
        return exactly(TCP)
    return exactly(ICMP if piece.version == 4 else ICMPV6)


def within(piece: Packets, step: Within) -> Match:
    """Take a test of one field."""
    if step.field in _OF_PROTOCOL and piece[Field.PROTOCOL] != _only(step.field, piece):
        return piece, piece
    return split(piece, step.field, step.ranges)


def masked(piece: Packets, step: Masked) -> Match:
    """Take a test of some bits, where the field has so few values that each can be tried."""
    mine = piece[step.field]
    values = None if mine is None else points(mine, _FEW)
    if values is None or (step.field in _OF_PROTOCOL and piece[Field.PROTOCOL] != _only(step.field, piece)):
        return piece, piece
    passing = exactly(*(v for v in values if (v & step.mask == step.value) != step.inverted))
    return split(piece, step.field, passing)


def address_type(piece: Packets, step: AddressType, kinds: Mapping[str, Ranges]) -> Match:
    """Take a test of what the routing tables call an address; of other types than in `kinds` nobody knows."""
    if not step.kinds <= kinds.keys():
        return piece, piece
    ranges: Ranges = NOTHING
    for kind in step.kinds:
        ranges = either(ranges, kinds[kind])
    inside, outside = split(piece, step.field, ranges)
    return (outside, inside) if step.inverted else (inside, outside)


def among(piece: Packets, step: Among) -> Match:
    """Take a test of several fields together."""
    found = [r for e in step.elements if (r := restricted(piece, step.fields, e)) is not None]
    inside = joined(found) if found else None
    certain = not step.unsure and any(_is(piece, step.fields, element) for element in step.elements)
    outside = None if certain else piece
    return (outside, inside) if step.inverted else (inside, outside)


def changes_mark(piece: Packets, mask: int | None, xor: int) -> bool:
    """Say whether (mark & mask) ^ xor may differ from the mark."""
    mine = piece[Field.MARK]
    values = None if mine is None else points(mine, _FEW)
    return mask is None or values is None or any((value & mask) ^ xor != value for value in values)


def restricted(
    piece: Packets, fields: tuple[Field | None, ...], element: tuple[Ranges, ...]
) -> Packets | None:
    """Return the packets that could be an element's, None when there are none."""
    for field, ranges in zip(fields, element, strict=True):
        if field is None:
            continue
        inside, _ = split(piece, field, ranges)
        if inside is None:
            return None
        piece = inside
    return piece


def rest(pieces: list[Packets], choice: Choose, element: tuple[Ranges, ...]) -> list[Packets]:
    """Return the packets that may not be an element's of a verdict map; exact for elements of one field."""
    fields = choice.fields
    if choice.unsure:
        return pieces
    if len(fields) == 1 and fields[0] is not None:
        return [out for piece in pieces if (out := split(piece, fields[0], element[0])[1]) is not None]
    return [piece for piece in pieces if not _is(piece, fields, element)]


def _is(piece: Packets, fields: tuple[Field | None, ...], element: tuple[Ranges, ...]) -> bool:
    """Say whether all of these packets are certainly the element's."""
    return all(
        field is not None and (mine := piece[field]) is not None and not without(mine, ranges)
        for field, ranges in zip(fields, element, strict=True)
    )
