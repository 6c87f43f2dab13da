"""Dataclasses that mirror C structs: a layout's codes make their bytes, and tell where each field lies."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from dataclasses import fields
from ipaddress import IPv6Address, ip_address
from typing import Any, ClassVar, Self, TypeVar, get_type_hints

from flannel_ebpf.base.errors import AbiMismatch
from flannel_ebpf.base.family import Address, Family
from flannel_ebpf.base.model import Mac

Struct = tuple[int, dict[str, tuple[int, int]]]
"""Size of a struct and {field: (offset, size)}, bytes; padding left out."""

STRUCTS: dict[Family, dict[str, Struct]] = {family: {} for family in Family}
"""Struct name in C -> its layout in each family's objects. Filled by `mirrors`."""


class Record:
    """A struct of bpf/flannel.h, there called `c_name`: `pack` gives its bytes, `unpack` reads them.

    With addresses, or what is made of them, in it, both do what the addresses' family asks for.
    """

    __slots__ = ()
    _formats: ClassVar[tuple[struct.Struct, struct.Struct]]
    _decode: ClassVar[tuple[Callable[[Any], Any], ...]]
    _encode: ClassVar[tuple[Callable[[Any], Any], ...]]
    c_name: ClassVar[str]

    def pack(self) -> bytes:
        """Return the struct's bytes, padding zero; AbiMismatch when a value does not fit its field."""
        values = [getattr(self, field.name) for field in fields(self)]  # type: ignore[arg-type]  # dataclasses
        layout = self._formats[any(isinstance(value, IPv6Address) for value in values)]
        try:
            return layout.pack(*(put(one) for put, one in zip(self._encode, values, strict=True)))
        except (struct.error, OverflowError) as error:
            raise AbiMismatch(f"struct {self.c_name}: {self} does not fit: {error}") from error

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        """Read the struct from exactly its size of bytes; AbiMismatch when they cannot be one."""
        ipv4, ipv6 = cls._formats
        try:
            values = (ipv6 if len(data) == ipv6.size else ipv4).unpack(data)
            return cls(*(get(one) for get, one in zip(cls._decode, values, strict=True)))
        except (struct.error, ValueError) as error:
            raise AbiMismatch(f"struct {cls.c_name}: {data.hex()} cannot be one: {error}") from error


_R = TypeVar("_R", bound=Record)


def mirrors(c_name: str, layout: str, layout6: str = "") -> Callable[[type[_R]], type[_R]]:
    """Tie a dataclass to its C struct.

    `layout` holds one `struct` code per field, in order, padding as "x", and `layout6` the same where IPv6's
    objects have another. The field's type says how bytes become a value; an int of several bytes ("2s") is in
    network byte order.
    """

    def tie(cls: type[_R]) -> type[_R]:
        hints = get_type_hints(cls)
        names = [field.name for field in fields(cls)]  # type: ignore[arg-type]  # Record's children are dataclasses
        layouts = (layout, layout6 or layout)
        used = [code for code in layout.split() if not code.endswith("x")]
        encode, decode = zip(
            *(_converters(hints[name], code) for name, code in zip(names, used, strict=True)), strict=True
        )
        ipv4, ipv6 = (struct.Struct("=" + one) for one in layouts)
        cls._formats, cls.c_name = (ipv4, ipv6), c_name
        cls._encode, cls._decode = encode, decode
        for family, text, made in zip(Family, layouts, cls._formats, strict=True):
            places = dict(zip(names, _places(text.split()), strict=True))
            STRUCTS[family][c_name] = (made.size, places)
        return cls

    return tie


def _places(codes: Iterable[str]) -> list[tuple[int, int]]:
    places, at = [], 0
    for code in codes:
        size = struct.calcsize("=" + code)
        if not code.endswith("x"):
            places.append((at, size))
        at += size
    return places


def _converters(kind: Any, code: str) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    if kind == Address:
        return (lambda address: address.packed), ip_address
    if kind is bytes:
        return bytes, bytes
    if kind is Mac:
        return (lambda mac: mac.octets), Mac
    if code.endswith("s"):
        width = struct.calcsize(code)
        return (lambda number: number.to_bytes(width, "big")), (lambda raw: int.from_bytes(raw, "big"))
    return int, kind
