"""BPF Type Format: what a compiled object says of its structs, enums and maps.

Format: kernel Documentation/bpf/btf.rst. Only layouts are read; the kernel and libbpf check the rest.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flannel_ebpf.base.errors import AbiMismatch, BpfUnavailable

Fields = Mapping[str, tuple[int, int]]
"""Field name -> (offset, size), bytes."""
Structs = Mapping[str, tuple[int, Fields]]
"""Struct name -> (size in bytes, its fields)."""
Enums = Mapping[str, Mapping[str, int]]
"""Enum name -> constant -> value."""

_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM, _FWD, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = range(1, 12)
_FUNC, _FUNC_PROTO, _VAR, _DATASEC, _FLOAT, _DECL_TAG, _TYPE_TAG, _ENUM64 = range(12, 20)
_TRANSPARENT = frozenset({_TYPEDEF, _VOLATILE, _CONST, _RESTRICT, _TYPE_TAG})
_SIZED = frozenset({_INT, _STRUCT, _UNION, _ENUM, _FLOAT, _ENUM64})
_TAIL = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_TAIL_PER_ROW = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_POINTER_SIZE = 8


@dataclass(frozen=True, slots=True)
class MapShape:
    """One map as the object declares it.

    `numbers` holds type, max_entries, map_flags, key_size, ... as declared; `key` and `value` describe the
    BTF types in full (names, offsets, sizes), "" where the object names none.
    """

    numbers: Mapping[str, int]
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class _Type:
    """One type record. `target` is a size or a type id, by kind.

    `rows` is what follows the record: a struct's (name, type id, byte offset), an enum's (name, value, 0), an
    array's (index type, element type id, length), a section's ("", variable's type id, 0).
    """

    kind: int
    name: str
    target: int
    rows: tuple[tuple[str, int, int], ...] = ()


class Btf:
    """A parsed .BTF section: structs, enums, and the maps of section .maps as libbpf reads them, by name."""

    def __init__(self, section: bytes) -> None:
        """Parse the section's bytes; raises BpfUnavailable when they are not whole version 1 BTF."""
        try:
            self._types = [_Type(0, "void", 0), *_types(section)]
            self.structs: Structs = {
                one.name: (one.target, {name: (at, self.size(of)) for name, of, at in one.rows})
                for one in self._types
                if one.kind == _STRUCT and one.name
            }
            self.enums: Enums = {
                one.name: {name: value for name, value, _ in one.rows}
                for one in self._types
                if one.kind == _ENUM and one.name
            }
            self.maps: Mapping[str, MapShape] = dict(self._maps())
        except (struct.error, ValueError, IndexError, RecursionError) as error:
            raise BpfUnavailable(f".BTF section cannot be read ({error}); build the object again") from error

    def size(self, type_id: int) -> int:
        """Size of a type in bytes; 0 for void and functions."""
        one = self._resolve(type_id)
        if one.kind in _SIZED:
            return one.target
        if one.kind == _ARRAY:
            _, element, count = one.rows[0]
            return count * self.size(element)
        return _POINTER_SIZE if one.kind == _PTR else 0

    def describe(self, type_id: int) -> str:
        """Return a text, equal for two types when they mean the same bytes under the same names."""
        one = self._resolve(type_id)
        if one.kind == _ARRAY:
            _, element, count = one.rows[0]
            return f"{self.describe(element)}[{count}]"
        if one.kind in (_STRUCT, _UNION):
            fields = ",".join(f"{name}@{at}:{self.describe(of)}" for name, of, at in one.rows)
            return f"{one.name}{{{fields}}}{one.target}"
        return f"{one.kind}.{self.size(type_id)}"

    def _maps(self) -> Iterator[tuple[str, MapShape]]:
        for section in self._types:
            if section.kind == _DATASEC and section.name == ".maps":
                for _, variable, _ in section.rows:
                    named = self._types[variable]
                    yield named.name, self._map(self._resolve(named.target))

    def _map(self, definition: _Type) -> MapShape:
        # BTF holds no values, so libbpf's macros put a number into an array's length and a type behind a
        # pointer: int (*max_entries)[1024]; struct fl_peer *value.
        numbers: dict[str, int] = {}
        types = {"key": "", "value": ""}
        for name, pointer, _ in definition.rows:
            pointed = self._resolve(pointer).target
            if name in types:
                types[name] = self.describe(pointed)
                numbers[f"{name}_size"] = self.size(pointed)
            elif self._types[pointed].kind == _ARRAY:
                numbers[name] = self._types[pointed].rows[0][2]
        return MapShape(numbers, types["key"], types["value"])

    def _resolve(self, type_id: int) -> _Type:
        one = self._types[type_id]
        for _ in self._types:
            if one.kind not in _TRANSPARENT:
                return one
            one = self._types[one.target]
        raise ValueError(f"type {type_id} is defined by itself")


def check(btf: Btf, structs: Structs, enums: Enums, *, complete: bool = True) -> None:
    """Compare an object's layout with its mirror; fields called pad* are only room.

    `complete`: every struct of the mirror must be in the object. An enum may be absent always: clang leaves
    out one that is used for its constants alone. Raises AbiMismatch naming the first difference.
    """
    for name, (size, fields) in structs.items():
        if name not in btf.structs:
            if complete:
                raise AbiMismatch(f"struct {name}: in flannel_ebpf/contract/, but the object has none")
            continue
        _check_struct(name, btf.structs[name], (size, fields))
    for name, constants in enums.items():
        compiled = btf.enums.get(name, constants)
        for constant in {**constants, **compiled}:
            here, there = constants.get(constant), compiled.get(constant)
            if here != there:
                raise AbiMismatch(f"enum {name}: {constant} is {there} in the object, {here} in its mirror")


def _check_struct(name: str, compiled: tuple[int, Fields], mirror: tuple[int, Fields]) -> None:
    there = {field: where for field, where in compiled[1].items() if not field.startswith("pad")}
    for field in {**mirror[1], **there}:
        if mirror[1].get(field) != there.get(field):
            raise AbiMismatch(
                f"struct {name}: field {field} is {_place(there.get(field))} in the object, "
                f"{_place(mirror[1].get(field))} in its mirror; build the object again (make -C bpf)"
            )
    if compiled[0] != mirror[0]:
        raise AbiMismatch(f"struct {name}: {compiled[0]} bytes in the object, {mirror[0]} in its mirror")


def _place(where: tuple[int, int] | None) -> str:
    return "absent" if where is None else f"at offset {where[0]}, {where[1]} bytes"


def _types(section: bytes) -> Iterator[_Type]:
    magic, version, _, header = struct.unpack_from("<HBBI", section)
    type_at, type_len, string_at, string_len = struct.unpack_from("<IIII", section, 8)
    if (magic, version) != (0xEB9F, 1):
        raise ValueError(f"magic {magic:#x} version {version}, expected 0xeb9f version 1")
    strings = section[header + string_at :][:string_len]
    at, end = header + type_at, header + type_at + type_len
    while at < end:
        name, info, target = struct.unpack_from("<III", section, at)
        kind, vlen, flag = info >> 24 & 0x1F, info & 0xFFFF, bool(info >> 31)
        length = _TAIL.get(kind, 0) + _TAIL_PER_ROW.get(kind, 0) * vlen
        tail = section[at + 12 : at + 12 + length]
        yield _Type(kind, _text(strings, name), target, tuple(_rows(kind, flag, tail, strings)))
        at += 12 + length


def _rows(kind: int, flag: bool, tail: bytes, strings: bytes) -> Iterator[tuple[str, int, int]]:
    if kind in (_STRUCT, _UNION):
        for name, of, bits in struct.iter_unpack("<III", tail):
            # with the flag, a bit field's width shares the word
            yield _text(strings, name), of, (bits & 0xFFFFFF if flag else bits) // 8
    elif kind == _ENUM:
        for name, value in struct.iter_unpack("<Ii" if flag else "<II", tail):
            yield _text(strings, name), value, 0
    elif kind == _ARRAY:
        element, _, count = struct.unpack("<III", tail)
        yield "", element, count
    elif kind == _DATASEC:
        for variable, _, _ in struct.iter_unpack("<III", tail):
            yield "", variable, 0


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
