"""The BTF and ELF readers, on sections written by hand and on broken ones."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import AbiMismatch, BpfUnavailable
from flannel_ebpf.contract import elf
from flannel_ebpf.contract.btf import Btf, MapShape, check

INT, PTR, ARRAY, STRUCT, ENUM, TYPEDEF, CONST, VAR, DATASEC = 1, 2, 3, 4, 6, 8, 10, 14, 15
LINKED = 1


class Writer:
    """Writes a .BTF section, type by type; each `add` returns the type's id."""

    def __init__(self) -> None:
        self.strings = b"\0"
        self.types = b""
        self.count = 0

    def text(self, name: str) -> int:
        self.strings += name.encode() + b"\0"
        return len(self.strings) - len(name) - 1

    def add(
        self, kind: int, name: str, target: int, tail: bytes = b"", *, vlen: int = 0, flag: int = 0
    ) -> int:
        label = self.text(name) if name else 0
        self.types += struct.pack("<III", label, flag << 31 | kind << 24 | vlen, target) + tail
        self.count += 1
        return self.count

    def number(self, size: int) -> int:
        return self.add(INT, f"u{size * 8}", size, struct.pack("<I", size * 8))

    def array(self, element: int, length: int) -> int:
        return self.add(ARRAY, "", 0, struct.pack("<III", element, element, length))

    def struct(self, name: str, size: int, *members: tuple[str, int, int]) -> int:
        tail = b"".join(struct.pack("<III", self.text(name), of, at * 8) for name, of, at in members)
        return self.add(STRUCT, name, size, tail, vlen=len(members))

    def enum(self, name: str, signed: int = 0, **constants: int) -> int:
        pairs = (struct.pack("<Ii" if signed else "<II", self.text(one), v) for one, v in constants.items())
        return self.add(ENUM, name, 4, b"".join(pairs), vlen=len(constants), flag=signed)

    def map(self, name: str, numbers: dict[str, int], **types: int) -> int:
        u32 = self.number(4)
        members = [(one, self.add(PTR, "", self.array(u32, value)), 0) for one, value in numbers.items()]
        members += [(one, self.add(PTR, "", of), 0) for one, of in types.items()]
        definition = self.struct("", 8 * len(members), *members)
        return self.add(VAR, name, definition, struct.pack("<I", LINKED))

    def section(self, name: str, *variables: int) -> None:
        tail = b"".join(struct.pack("<III", one, 0, 8) for one in variables)
        self.add(DATASEC, name, 0, tail, vlen=len(variables))

    def bytes(self) -> bytes:
        sizes = struct.pack("<IIII", 0, len(self.types), len(self.types), len(self.strings))
        return struct.pack("<HBBI", 0xEB9F, 1, 0, 24) + sizes + self.types + self.strings


def sample() -> Writer:
    out = Writer()
    u8, u32 = out.number(1), out.number(4)
    alias = out.add(TYPEDEF, "__u32", u32)
    mode = out.enum("fl_mode", NONE=0, VXLAN=1)
    out.struct(
        "fl_peer",
        16,
        ("ip", out.array(out.add(CONST, "", u8), 4), 0),
        ("slot", alias, 4),
        ("mode", mode, 8),
        ("pad", out.array(u8, 4), 12),
    )
    return out


STRUCTS = {"fl_peer": (16, {"ip": (0, 4), "slot": (4, 4), "mode": (8, 4)})}
ENUMS = {"fl_mode": {"NONE": 0, "VXLAN": 1}}


def test_layout_is_read_through_typedefs_qualifiers_and_arrays() -> None:
    btf = Btf(sample().bytes())
    assert btf.structs == {"fl_peer": (16, {**STRUCTS["fl_peer"][1], "pad": (12, 4)})}
    assert btf.enums == ENUMS


def test_negative_constants() -> None:
    out = Writer()
    out.enum("signed", signed=1, MINUS=-1, PLUS=1)
    assert Btf(out.bytes()).enums == {"signed": {"MINUS": -1, "PLUS": 1}}


def test_equal_layout_passes() -> None:
    check(Btf(sample().bytes()), STRUCTS, ENUMS)


@pytest.mark.parametrize(
    ("structs", "enums", "message"),
    [
        (
            {"fl_peer": (16, {"ip": (0, 4), "slot": (6, 2), "mode": (8, 4)})},
            {},
            r"struct fl_peer: field slot is at offset 4, 4 bytes in the object, at offset 6, 2 bytes in its",
        ),
        (
            {"fl_peer": (16, {"ip": (0, 4), "slot": (4, 4)})},
            {},
            r"field mode is at offset 8, 4 bytes in the object, absent in its mirror",
        ),
        (
            {"fl_peer": (16, {**STRUCTS["fl_peer"][1], "mtu": (12, 2)})},
            {},
            r"field mtu is absent in the object, at offset 12, 2 bytes in its mirror",
        ),
        (
            {"fl_peer": (20, STRUCTS["fl_peer"][1])},
            {},
            r"struct fl_peer: 16 bytes in the object, 20 in its mirror",
        ),
        (
            {"fl_port": (4, {})},
            {},
            r"struct fl_port: in flannel_ebpf/contract/, but the object has none",
        ),
        (
            {},
            {"fl_mode": {"NONE": 0, "VXLAN": 2}},
            r"enum fl_mode: VXLAN is 1 in the object, 2 in its mirror",
        ),
        ({}, {"fl_mode": {"NONE": 0}}, r"enum fl_mode: VXLAN is 1 in the object, None in its mirror"),
        ({}, {"fl_mode": {"NONE": 0, "VXLAN": 1, "UDP": 2}}, r"UDP is None in the object, 2 in its mirror"),
    ],
)
def test_each_difference_is_named(structs: dict[str, object], enums: dict[str, object], message: str) -> None:
    with pytest.raises(AbiMismatch, match=message):
        check(Btf(sample().bytes()), structs, enums)  # type: ignore[arg-type]  # tables of every shape


def test_absent_enum_and_absent_struct_of_a_partial_object_pass() -> None:
    check(Btf(Writer().bytes()), STRUCTS, ENUMS, complete=False)


def test_maps_are_read_as_libbpf_declares_them() -> None:
    out = sample()
    key = out.number(4)
    out.section(
        ".maps", out.map("fl_peers", {"type": 1, "max_entries": 1024, "map_flags": 1}, key=key, value=4)
    )
    out.section(".rodata", out.add(VAR, "fl_cfg", 4, struct.pack("<I", LINKED)))
    assert Btf(out.bytes()).maps == {
        "fl_peers": MapShape(
            {"type": 1, "max_entries": 1024, "map_flags": 1, "key_size": 4, "value_size": 4}, "1.4", "6.4"
        )
    }


def test_description_tells_layouts_apart_and_typedefs_not() -> None:
    def value(*members: tuple[str, int, int]) -> str:
        out = Writer()
        u16, u32 = out.number(2), out.number(4)
        named = out.add(TYPEDEF, "name", u32)
        kinds = {2: u16, 4: u32, 5: named}
        fields = [(name, kinds[kind], at) for name, kind, at in members]
        out.section(".maps", out.map("m", {"type": 1}, key=u32, value=out.struct("v", 8, *fields)))
        return Btf(out.bytes()).maps["m"].value

    first = value(("a", 4, 0), ("b", 4, 4))
    assert value(("a", 5, 0), ("b", 4, 4)) == first
    assert value(("a", 4, 0), ("c", 4, 4)) != first
    assert value(("a", 4, 4), ("b", 4, 0)) != first
    assert value(("a", 4, 0), ("b", 2, 4)) != first


@pytest.mark.parametrize("section", [b"", bytes(24), b"\x9f\xeb\x02" + bytes(30)])
def test_other_bytes_are_no_btf(section: bytes) -> None:
    with pytest.raises(BpfUnavailable, match=r"\.BTF section cannot be read"):
        Btf(section)


def test_type_that_is_its_own_definition_is_refused() -> None:
    out = Writer()
    out.add(TYPEDEF, "loop", 1)
    out.struct("fl_peer", 4, ("field", 1, 0))
    with pytest.raises(BpfUnavailable, match="type 1 is defined by itself"):
        Btf(out.bytes())


@given(st.data())
def test_damaged_btf_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    whole = bytearray(sample().bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    try:
        check(Btf(cut), STRUCTS, ENUMS)
    except (AbiMismatch, BpfUnavailable):
        return


@given(st.binary(max_size=200))
def test_damaged_elf_is_refused(body: bytes) -> None:
    head = b"\x7fELF\x02\x01" + bytes(12) + struct.pack("<H", 247) + bytes(20)
    for image in (body, head + struct.pack("<Q", 64) + bytes(10) + body):
        try:
            elf.parse(image, "test.o")
        except BpfUnavailable as error:
            assert str(error).startswith("test.o: ")  # noqa: PT017  # only refused images say anything
