"""The little of ELF that a BPF object needs: sections by name and symbols by name. 64 bit, little-endian."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from flannel_ebpf.base.errors import BpfUnavailable

_MAGIC = b"\x7fELF\x02\x01"  # ELFCLASS64, ELFDATA2LSB
_EM_BPF = 247
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")


@dataclass(frozen=True, slots=True)
class Symbol:
    """Where a variable lies: its section's name, offset in it and size, both in bytes."""

    section: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Elf:
    """An object file's sections (raw bytes) and symbols."""

    sections: dict[str, bytes]
    symbols: dict[str, Symbol]


def parse(image: bytes, name: str) -> Elf:
    """Read a BPF object file; `name` is used in messages.

    Raises BpfUnavailable when `image` is not a complete ELF object for BPF (System V ABI, ELF-64).
    """
    try:
        return _parse(image, name)
    except (struct.error, IndexError, ValueError) as error:
        raise BpfUnavailable(f"{name}: truncated or broken ELF object ({error}); build it again") from error


def _parse(image: bytes, name: str) -> Elf:
    machine = struct.unpack_from("<H", image, 18)[0]
    if not image.startswith(_MAGIC) or machine != _EM_BPF:
        raise BpfUnavailable(f"{name}: not a little-endian BPF object; build it with clang -target bpfel")
    table = struct.unpack_from("<Q", image, 40)[0]
    entry_size, count, names_at = struct.unpack_from("<HHH", image, 58)
    headers = [_SECTION.unpack_from(image, table + index * entry_size) for index in range(count)]
    bodies = [image[header[4] : header[4] + header[5]] for header in headers]
    names = [_text(bodies[names_at], header[0]) for header in headers]
    symbols: dict[str, Symbol] = {}
    for header, body, title in zip(headers, bodies, names, strict=True):
        if title != ".symtab":
            continue
        for at in range(0, len(body), _SYMBOL.size):
            label, _, _, section, offset, size = _SYMBOL.unpack_from(body, at)
            if label and 0 < section < count:
                symbols[_text(bodies[header[6]], label)] = Symbol(names[section], offset, size)
    return Elf(dict(zip(names, bodies, strict=True)), symbols)


def _text(strings: bytes, at: int) -> str:
    return strings[at : strings.index(b"\0", at)].decode()
