"""Programs: loaded from raw instructions or found by id, described, and run on a packet."""

from __future__ import annotations

import ctypes
import resource
import struct
from dataclasses import dataclass
from functools import cache

from flannel_ebpf.base.errors import BpfError, BpfUnavailable, VerifierRejected
from flannel_ebpf.kernel.bpf.syscall import Descriptor, c_string, call

_LOAD, _TEST_RUN, _BY_ID = 5, 10, 13
_LOG_SIZE = 1 << 16
_CTX_ROOM = 256  # the kernel writes its whole __sk_buff, 192 bytes on 6.18
_SCHED_CLS = 3  # BPF_PROG_TYPE_SCHED_CLS


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


class Program(Descriptor):
    """One loaded program."""

    @classmethod
    def by_id(cls, program_id: int) -> Program:
        """Open a program by the kernel's id; BpfError (code ENOENT) when it is gone."""
        fd, _ = call(_BY_ID, struct.pack("=III", program_id, 0, 0), f"open program {program_id}")
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
            fd, _ = call(_LOAD, attr, f"load program {name}")
        except BpfUnavailable:
            raise
        except BpfError as error:
            raise VerifierRejected(str(error), "\n".join(c_string(log.raw).splitlines()[-20:])) from error
        return cls(fd, name)

    def info(self) -> ProgramInfo:
        """Read the program's id, name, tag, map ids and run statistics."""
        raw = self._describe(232)
        count = struct.unpack_from("=I", raw, 52)[0]
        ids = ctypes.create_string_buffer(max(count, 1) * 4)
        raw = self._describe(232, struct.pack("=52xIQ", count, ctypes.addressof(ids)))
        program_id, tag = struct.unpack_from("=4xI8s", raw)
        run_time, runs = struct.unpack_from("=QQ", raw, 192)
        return ProgramInfo(
            program_id,
            c_string(raw[64:80]),
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
