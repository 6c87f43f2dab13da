"""What a look into a set, a verdict map or a map says of packets."""

from __future__ import annotations

from collections.abc import Callable

from flannel_ebpf.desired.proof.packets import Field, Version, all_of
from flannel_ebpf.desired.proof.ranges import Ranges, exactly, of, without
from flannel_ebpf.desired.proof.rules import AddressType, Among, Choose, Perhaps, Step, Within
from flannel_ebpf.kernel.firewall.decode.loads import ROUTE_TYPES, Load
from flannel_ebpf.kernel.firewall.decode.sets import Contents, ranges_of


def key(read: Callable[[int], Load], place: int, length: int) -> list[Load]:
    """Return the registers that make up a key of so many octets."""
    found = []
    while length > 0:
        load = read(place)
        found.append(load)
        place += (load.length + 3) // 4
        length -= (load.length + 3) & ~3
    return found


def member(what: str, loads: list[Load], contents: Contents, version: Version, *, inverted: bool) -> Step:
    """Return the test whether packets are in a set."""
    elements = [found for one in contents.elements if (found := ranges_of(loads, one)) is not None]
    varies = any(load.varies and load.field is None for load in loads)
    if contents.moving or contents.catches_all or len(elements) != len(contents.elements) or not loads:
        return Perhaps(what, varies)
    only = loads[0].field if len(loads) == 1 else None
    if only is not None:
        return _of_one(
            only, of(pair for ranges in elements for pair in ranges[0]), contents, version, inverted
        )
    if len(loads) > 1 and not varies:
        return Among(tuple(load.field for load in loads), tuple(elements), inverted, contents.unsure)
    if loads[0].type_of is not None:
        kinds = frozenset(ROUTE_TYPES.get(ranges[0][0][0], "other") for ranges in elements)
        return AddressType(loads[0].type_of, kinds, inverted)
    return Perhaps(what, varies)


def _of_one(field: Field, found: Ranges, contents: Contents, version: Version, inverted: bool) -> Step:
    if contents.unsure:
        return Among((field,), ((found,),), inverted, unsure=True)
    return Within(field, without(all_of(field, version), found) if inverted else found)


def is_known(loads: list[Load], contents: Contents) -> bool:
    """Say whether all elements of a verdict map could be read."""
    return not contents.moving and all(ranges_of(loads, one) is not None for one in contents.elements)


def choice(loads: list[Load], contents: Contents) -> Choose:
    """Return a verdict map's verdicts."""
    pairs = [(ranges_of(loads, one), one.data) for one in contents.elements]
    elements = tuple(
        (ranges, data) for ranges, data in pairs if ranges is not None and not isinstance(data, bytes)
    )
    otherwise = None if isinstance(contents.otherwise, bytes) else contents.otherwise
    return Choose(tuple(load.field for load in loads), elements, otherwise, contents.unsure)


def mapped(what: str, contents: Contents, version: Version) -> Load:
    """Return what a map puts into a register: of its data the address, which comes first."""
    size = 4 if version == 4 else 16
    data = [one.data for one in contents.elements]
    data += [contents.otherwise] if contents.catches_all else []
    known = [one[:size] for one in data if isinstance(one, bytes) and len(one) >= size]
    sure = not contents.moving and len(known) == len(data)
    return Load(what, 4, addresses=exactly(*map(int.from_bytes, known)) if sure else None, varies=True)
