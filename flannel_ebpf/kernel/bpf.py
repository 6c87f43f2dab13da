"""Maps and programs through bpf(2): the daemon's whole need of BPF, without a library.

Structures follow `union bpf_attr` of linux/bpf.h; its layout is a stable kernel interface. Every object owns
a file descriptor and is a context manager that closes it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from flannel_ebpf.errors import BpfError, BpfUnavailable, VerifierRejected

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_LOOKUP, _UPDATE, _DELETE, _NEXT_KEY, _PROG_LOAD, _PIN, _GET = range(1, 8)
_TEST_RUN, _PROG_BY_ID, _MAP_BY_ID, _INFO, _LOOKUP_BATCH, _UPDATE_BATCH = 10, 13, 14, 15, 24, 26
_PER_CPU_TYPES = frozenset({5, 6, 10})  # BPF_MAP_TYPE_PERCPU_HASH, PERCPU_ARRAY, LRU_PERCPU_HASH
_ENOTSUPP = 524  # kernel-internal number that map types without batch operations let through
_NO_BATCH = frozenset({errno.EINVAL, errno.EOPNOTSUPP, _ENOTSUPP})
_BATCH = 4096
_LOG_SIZE = 1 << 16
_CTX_ROOM = 256  # the kernel writes its whole __sk_buff, 192 bytes on 6.18
_SCHED_CLS = 3  # BPF_PROG_TYPE_SCHED_CLS

_libc = ctypes.CDLL(None, use_errno=True)


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


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel says of a program; run times need sysctl kernel.bpf_stats_enabled=1."""

    id: int
    name: str
    tag: str
    map_ids: tuple[int, ...]
    run_time_ns: int
    run_cnt: int


@dataclass(frozen=True, slots=True)
class TestRun:
    """Result of BPF_PROG_TEST_RUN: verdict, packet and context after it, and average ns per run."""

    verdict: int
    data: bytes
    ctx: bytes
    duration_ns: int


class _Descriptor:
    def __init__(self, fd: int, name: str) -> None:
        self.fd = fd
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; the object lives on while it is pinned or attached."""
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open a pinned object; BpfError (code ENOENT) when nothing is pinned there."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        fd, _ = call(_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), f"open {path}")
        return cls(fd, str(path))

    def pin(self, path: Path) -> None:
        """Keep the object under a name in bpffs; BpfError (code EEXIST) when the name is taken."""
        name = ctypes.create_string_buffer(os.fsencode(path))
        call(_PIN, struct.pack("=QII", ctypes.addressof(name), self.fd, 0), f"pin {self.name} at {path}")


class Map(_Descriptor):
    """One map. Keys and values are bytes of exactly `info.key_size` and `info.value_size`."""

    def __init__(self, fd: int, name: str) -> None:
        super().__init__(fd, name)
        raw = _info(fd, 80, name)
        kind, map_id, key_size, value_size, entries, flags, label = struct.unpack_from("=6I16s", raw)
        self.info = MapInfo(kind, map_id, key_size, value_size, entries, flags, _text(label))
        self._per_cpu = self.info.type in _PER_CPU_TYPES
        self._stride = -(-self.info.value_size // 8) * 8 if self._per_cpu else self.info.value_size
        self._slot = self._stride * (possible_cpus() if self._per_cpu else 1)

    @classmethod
    def by_id(cls, map_id: int) -> Map:
        """Open a map by the kernel's id; BpfError (code ENOENT) when it is gone."""
        fd, _ = call(_MAP_BY_ID, struct.pack("=III", map_id, 0, 0), f"open map {map_id}")
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

    def update_many(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Create or replace many entries, in one call where the map type can (kernel 5.6)."""
        entries = list(entries)
        if not entries:
            return
        keys = ctypes.create_string_buffer(b"".join(self._key(key) for key, _ in entries))
        values = ctypes.create_string_buffer(b"".join(self._value(value) for _, value in entries))
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
        try:
            return dict(self._batches())
        except BpfError as error:
            if error.code not in _NO_BATCH:
                raise
            return dict(self._one_by_one())

    def per_cpu(self) -> dict[bytes, list[bytes]]:
        """Return every entry of a per-CPU map with its value on each possible CPU."""
        size = self.info.value_size
        return {
            key: [values[at : at + size] for at in range(0, self._slot, self._stride)]
            for key, values in self.items().items()
        }

    def sums(self) -> dict[bytes, bytes]:
        """Return every entry of a per-CPU map of __u64 counters, added up over the CPUs."""
        counters = f"={self.info.value_size // 8}Q"
        return {
            key: struct.pack(
                counters,
                *map(sum, zip(*(struct.unpack(counters, one) for one in values), strict=True)),
            )
            for key, values in self.per_cpu().items()
        }

    def _batches(self) -> Iterator[tuple[bytes, bytes]]:
        key_size, count = self.info.key_size, min(_BATCH, self.info.max_entries)
        token = ctypes.create_string_buffer(max(key_size, 8))  # opaque; a hash keeps a bucket number there
        start = 0
        while True:
            keys = ctypes.create_string_buffer(count * key_size)
            values = ctypes.create_string_buffer(count * self._slot)
            attr = self._batch(start, ctypes.addressof(token), keys, values, count)
            done = False
            try:
                _, out = call(_LOOKUP_BATCH, attr, f"read {self.name}")
            except _RefusedError as error:
                if error.code == errno.ENOSPC:  # a bucket holds more than the buffer does
                    count *= 2
                    continue
                if error.code != errno.ENOENT:
                    raise
                done, out = True, error.attr
            found = struct.unpack_from("=I", out, 32)[0]
            names, contents, size = keys.raw, values.raw, self._slot  # raw copies the whole buffer each time
            for index in range(found):
                at, place = index * key_size, index * size
                yield names[at : at + key_size], contents[place : place + size]
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


_VERBS = {_LOOKUP: "look up", _UPDATE: "update", _DELETE: "delete", _NEXT_KEY: "step after"}


class Program(_Descriptor):
    """One loaded program."""

    @classmethod
    def by_id(cls, program_id: int) -> Program:
        """Open a program by the kernel's id; BpfError (code ENOENT) when it is gone."""
        fd, _ = call(_PROG_BY_ID, struct.pack("=III", program_id, 0, 0), f"open program {program_id}")
        return cls(fd, f"program {program_id}")

    @classmethod
    def load(cls, instructions: bytes, name: str) -> Program:
        """Load a tc classifier from raw instructions (8 bytes each).

        Raises VerifierRejected with the verifier's last lines, BpfUnavailable when loading is not allowed.
        """
        _lift_memlock()
        code, license_text = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
        log = ctypes.create_string_buffer(_LOG_SIZE)
        attr = struct.pack(
            "=IIQQIIQII16s",
            *(_SCHED_CLS, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text)),
            *(1, _LOG_SIZE, ctypes.addressof(log), 0, 0, name.encode()[:15]),
        )
        try:
            fd, _ = call(_PROG_LOAD, attr, f"load program {name}")
        except BpfUnavailable:
            raise
        except BpfError as error:
            raise VerifierRejected(str(error), "\n".join(_text(log.raw).splitlines()[-20:])) from error
        return cls(fd, name)

    def info(self) -> ProgramInfo:
        """Read the program's id, name, tag, map ids and run statistics."""
        raw = _info(self.fd, 232, self.name)
        count = struct.unpack_from("=I", raw, 52)[0]
        ids = ctypes.create_string_buffer(max(count, 1) * 4)
        raw = _info(self.fd, 232, self.name, struct.pack("=52xIQ", count, ctypes.addressof(ids)))
        program_id, tag = struct.unpack_from("=4xI8s", raw)
        run_time, runs = struct.unpack_from("=QQ", raw, 192)
        return ProgramInfo(
            program_id,
            _text(raw[64:80]),
            tag.hex(),
            struct.unpack_from(f"={count}I", ids.raw),
            run_time,
            runs,
        )

    def test_run(self, data: bytes, ctx: bytes = b"", repeat: int = 1, room: int = 256) -> TestRun:
        """Run the program on a packet with BPF_PROG_TEST_RUN; nothing is sent and no redirect happens.

        `data` starts with an Ethernet header, at least 14 bytes. `ctx` is the beginning of a struct __sk_buff
        or xdp_md, empty for none. `room` bounds by how much the program may grow the packet.
        """
        packet = ctypes.create_string_buffer(data, len(data))
        after = ctypes.create_string_buffer(len(data) + room)
        context, context_after = ctypes.create_string_buffer(ctx), ctypes.create_string_buffer(_CTX_ROOM)
        attr = struct.pack(
            "=IIIIQQIIIIQQIIII",
            *(self.fd, 0, len(data), len(after), ctypes.addressof(packet), ctypes.addressof(after)),
            *(repeat, 0, len(ctx), _CTX_ROOM if ctx else 0),
            *((ctypes.addressof(context), ctypes.addressof(context_after)) if ctx else (0, 0)),
            *(0, 0, 0, 0),
        )
        _, out = call(_TEST_RUN, attr, f"test run of {self.name}")
        verdict, _, size = struct.unpack_from("=III", out, 4)
        duration, _, ctx_size = struct.unpack_from("=III", out, 36)
        return TestRun(verdict, after.raw[:size], context_after.raw[:ctx_size], duration)


def _sized(data: bytes, size: int, what: str) -> bytes:
    if len(data) != size:
        raise BpfError(f"{what} of {len(data)} bytes, expected {size}", errno.EINVAL)
    return data


@cache
def possible_cpus() -> int:
    """Return how many values a per-CPU map holds per key (highest possible CPU plus one)."""
    ranges = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(ranges.replace("-", ",").split(",")[-1]) + 1


@cache
def _lift_memlock() -> None:
    """Lift the limit on locked memory, to which kernels before 5.11 charge all BPF objects of a user.

    Otherwise EPERM meets a process that starts when the user's maps and programs exceed its limit already.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:  # without CAP_SYS_RESOURCE, as far as it goes
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def _info(fd: int, size: int, name: str, ask: bytes = b"") -> bytes:
    buffer = ctypes.create_string_buffer(ask, size)
    call(_INFO, struct.pack("=IIQ", fd, size, ctypes.addressof(buffer)), f"ask about {name}")
    return buffer.raw


def call(command: int, attr: bytes, what: str) -> tuple[int, bytes]:
    """Call bpf(2); return its result and the attribute as the kernel left it.

    `what` is what is being done, for the message. Raises BpfUnavailable without the rights or without BPF,
    BpfError with the kernel's errno otherwise.
    """
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise BpfUnavailable(f"{what}: the bpf system call's number on {platform.machine()} is not known")
    buffer = ctypes.create_string_buffer(attr, len(attr))
    result = _libc.syscall(number, command, buffer, len(attr))
    if result >= 0:
        return result, buffer.raw
    code = ctypes.get_errno()
    message = f"{what}: {os.strerror(code)}"
    if code == errno.ENOSYS:
        raise BpfUnavailable(f"{message}: this kernel has no BPF", code)
    if code == errno.EPERM:
        raise BpfUnavailable(f"{message}: needs root, or CAP_BPF and CAP_NET_ADMIN", code)
    raise _RefusedError(message, code, buffer.raw)


class _RefusedError(BpfError):
    """A refused call together with the attribute, where batch reads leave their count."""

    def __init__(self, message: str, code: int, attr: bytes) -> None:
        super().__init__(message, code)
        self.attr = attr


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")
