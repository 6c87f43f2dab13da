"""Maps: entries one by one and in batches, and sums over CPUs."""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from flannel_ebpf.base.errors import BpfError, edge
from flannel_ebpf.kernel.bpf.syscall import Descriptor, RefusedError, c_string, call

_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = 1, 2, 3, 4
_POP = 21  # BPF_MAP_LOOKUP_AND_DELETE_ELEM
_BY_ID, _LOOKUP_BATCH, _UPDATE_BATCH = 14, 24, 26
_VERBS = {_LOOKUP: "look up", _UPDATE: "update", _DELETE: "delete", _NEXT_KEY: "step after"}
_PER_CPU_TYPES = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_ENOTSUPP = 524  # kernel-internal number that map types without batch operations let through
_NO_BATCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP})
_BATCH = 4096
_BUFFER = 1 << 20
"""Octets of values that one call reads: a value of a per-CPU map may be that of 128 CPUs."""
_FEW = 8
"""A lookup costs as much as so many entries of a batch."""


@dataclass(frozen=True, slots=True)
class MapInfo:
    """What the kernel says of a map; sizes in bytes, `name` cut at 15 characters."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class Map(Descriptor):
    """One map. Keys and values are bytes of exactly `info.key_size` and `info.value_size`."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        raw = self._describe(80)
        kind, map_id, key_size, value_size, entries, flags, label = struct.unpack_from("=6I16s", raw)
        self.info = MapInfo(kind, map_id, key_size, value_size, entries, flags, c_string(label))
        self._per_cpu = self.info.type in _PER_CPU_TYPES
        self._stride = -(-self.info.value_size // 8) * 8 if self._per_cpu else self.info.value_size
        self._slot = self._stride * (possible_cpus() if self._per_cpu else 1)

    @classmethod
    def by_id(cls, map_id: int) -> Map:
        """Open a map by the kernel's id; BpfError (code ENOENT) when it is gone."""
        fd, _ = call(_BY_ID, struct.pack("=III", map_id, 0, 0), f"open map {map_id}")
        return cls(fd, f"map {map_id}")

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of `key`, None when there is none; per-CPU values follow each other."""
        value = ctypes.create_string_buffer(self._slot)
        try:
            self._element(_LOOKUP, key, ctypes.addressof(value))
        except BpfError as error:
            if error.code != errno.ENOENT:
                raise
            return None
        return value.raw

    def update(self, key: bytes, value: bytes) -> None:
        """Create or replace one entry, whole: readers see the old value or the new one."""
        buffer = ctypes.create_string_buffer(self._value(value), self._slot)
        self._element(_UPDATE, key, ctypes.addressof(buffer))

    def delete(self, key: bytes) -> bool:
        """Remove one entry; False when it was not there."""
        try:
            self._element(_DELETE, key, 0)
        except BpfError as error:
            if error.code != errno.ENOENT:
                raise
            return False
        return True

    def pop(self) -> bytes | None:
        """Take the oldest value of a queue, None when it is empty."""
        value = ctypes.create_string_buffer(self._slot)
        attr = struct.pack("=IIQQQ", self.fd, 0, 0, ctypes.addressof(value), 0)
        try:
            call(_POP, attr, f"take from {self.name}")
        except BpfError as error:
            if error.code != errno.ENOENT:
                raise
            return None
        return value.raw

    def update_many(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Create or replace many entries, in one call where the map type can (kernel 5.6)."""
        entries = list(entries)
        if not entries:
            return
        names, contents = zip(*entries, strict=True)
        keys = ctypes.create_string_buffer(_joined(names, self.info.key_size, f"{self.name}: key"))
        values = ctypes.create_string_buffer(_joined(contents, self._slot, f"{self.name}: value"))
        attr = self._batch(0, 0, keys, values, len(entries))
        try:
            call(_UPDATE_BATCH, attr, f"update {len(entries)} entries of {self.name}")
        except BpfError as error:
            if error.code not in _NO_BATCH:
                raise
            for key, value in entries:
                self.update(key, value)

    def items(self) -> dict[bytes, bytes]:
        """Return every entry; those added or removed meanwhile may or may not be among them."""
        found: dict[bytes, bytes] = {}
        try:
            for names, contents in self._batches():
                found.update(zip(_cut(names, self.info.key_size), _cut(contents, self._slot), strict=True))
        except BpfError as error:
            if error.code not in _NO_BATCH:
                raise
            return dict(self._one_by_one())
        return found

    def per_cpu(self) -> dict[bytes, list[bytes]]:
        """Return every entry of a per-CPU map with its value on each possible CPU."""
        size = self.info.value_size
        return {
            key: [values[at : at + size] for at in range(0, self._slot, self._stride)]
            for key, values in self.items().items()
        }

    def sums(self, keys: Collection[bytes] | None = None) -> dict[bytes, bytes]:
        """Return every entry of a per-CPU map of __u64 counters, or those of `keys`, added up over the CPUs.

        A few keys are asked for one by one: it costs what they cost, and not what the map and all CPUs do.
        """
        if keys is not None and len(keys) * _FEW < self.info.max_entries:
            found = ((key, self.lookup(key)) for key in keys)
            return {key: self._sum(value) for key, value in found if value is not None}
        everything = self.items()
        return {key: self._sum(value) for key, value in everything.items() if keys is None or key in keys}

    def _sum(self, value: bytes) -> bytes:
        """Add up what each CPU has counted."""
        fields = self.info.value_size // 8
        counters = struct.unpack(f"={len(value) // 8}Q", value)
        return struct.pack(f"={fields}Q", *(sum(counters[field::fields]) for field in range(fields)))

    def _batches(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values, those of many entries in one string each."""
        key_size, count = (
            self.info.key_size,
            min(_BATCH, self.info.max_entries, max(_BUFFER // self._slot, 1)),
        )
        token = ctypes.create_string_buffer(max(key_size, 8))  # opaque; a hash keeps a bucket number there
        start = 0
        while True:
            keys = ctypes.create_string_buffer(count * key_size)
            values = ctypes.create_string_buffer(count * self._slot)
            attr = self._batch(start, ctypes.addressof(token), keys, values, count)
            done = False
            try:
                _, out = call(_LOOKUP_BATCH, attr, f"read {self.name}")
            except RefusedError as error:
                if error.code == errno.ENOSPC:  # a bucket holds more than the buffer does
                    count *= 2
                    continue
                if error.code != errno.ENOENT:
                    raise
                done, out = True, error.attr
            found = struct.unpack_from("=I", out, 32)[0]
            yield keys.raw[: found * key_size], values.raw[: found * self._slot]
            if done:
                return
            start = ctypes.addressof(token)

    def _one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        following = ctypes.create_string_buffer(self.info.key_size)
        key = b""
        # a key removed meanwhile sends the walk back to the start, so its length must have a bound
        for _ in range(2 * self.info.max_entries):
            try:
                self._element(_NEXT_KEY, key, ctypes.addressof(following), first=not key)
            except BpfError as error:
                if error.code != errno.ENOENT:
                    raise
                return
            key = following.raw
            value = self.lookup(key)
            if value is not None:
                yield key, value

    def _element(self, command: int, key: bytes, value_at: int, *, first: bool = False) -> None:
        name = b"" if first else self._key(key)
        buffer = ctypes.create_string_buffer(name, len(name) + 1)
        attr = struct.pack("=IIQQQ", self.fd, 0, 0 if first else ctypes.addressof(buffer), value_at, 0)
        call(command, attr, f"{_VERBS[command]} {key.hex() or 'first key'} in {self.name}")

    def _batch(
        self,
        start: int,
        token: int,
        keys: ctypes.Array[ctypes.c_char],
        values: ctypes.Array[ctypes.c_char],
        count: int,
    ) -> bytes:
        addresses = (start, token, ctypes.addressof(keys), ctypes.addressof(values))
        return struct.pack("=QQQQIIQQ", *addresses, count, self.fd, 0, 0)

    def _key(self, key: bytes) -> bytes:
        return _sized(key, self.info.key_size, f"{self.name}: key")

    def _value(self, value: bytes) -> bytes:
        return _sized(value, self._slot, f"{self.name}: value")


def _joined(parts: Sequence[bytes], size: int, what: str) -> bytes:
    if {*map(len, parts)} != {size}:
        for part in parts:
            _sized(part, size, what)
    return b"".join(parts)


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _sized(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise BpfError(f"{what} of {len(data)} bytes, expected {size}", errno.EINVAL)
    return data


@cache
def possible_cpus() -> int:
    """Return how many values a per-CPU map holds per key (highest possible CPU plus one)."""
    with edge("number of CPUs", BpfError):
        ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.replace("-", ",").split(",")[-1]) + 1
