"""Attributes and messages of rtnetlink: what is packed is parsed, and no input makes a parser fail."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket, attribute, attributes, messages

kinds = st.integers(min_value=1, max_value=0x3FFF)
payloads = st.binary(max_size=64)


@given(st.dictionaries(kinds, payloads, max_size=12), st.binary(max_size=16))
def test_attributes_round_trip(wanted: dict[int, bytes], head: bytes) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in wanted.items())
    assert len(packed) % 4 == 0
    assert attributes(head + packed, len(head)) == wanted


@given(kinds, payloads)
def test_flags_of_a_type_are_left_out(kind: int, payload: bytes) -> None:
    assert attributes(attribute(kind | 0x8000, payload)) == {kind: payload}


@given(st.binary(max_size=200))
def test_any_octets_are_parsed_to_an_end(data: bytes) -> None:
    assert sum(len(payload) for payload in attributes(data).values()) <= len(data)


@given(st.lists(st.tuples(st.integers(16, 200), st.integers(0, 2**32 - 1), payloads), max_size=8))
def test_messages_of_one_datagram(wanted: list[tuple[int, int, bytes]]) -> None:
    data = b"".join(
        struct.pack("=IHHII", 16 + len(body), kind, 0, 1, port) + body + bytes(-len(body) % 4)
        for kind, port, body in wanted
    )
    assert messages(data) == wanted


@given(st.binary(max_size=200))
def test_any_datagram_is_parsed_to_an_end(data: bytes) -> None:
    assert len(messages(data)) <= len(data) // 16


HEADER = struct.Struct("=IHHII")
DONE, INTERRUPTED = 3, 0x10


class Changing:
    """The kernel's end: a table of two objects that changes while it is dumped, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self._answer = b""

    def send(self, data: bytes, *_: object) -> int:
        sequence = HEADER.unpack_from(data)[3]
        flags = INTERRUPTED if self.times > 0 else 0
        self.times -= 1
        objects = (HEADER.pack(20, 24, flags, sequence, 0) + body for body in (b"one.", b"two."))
        self._answer = b"".join(objects) + HEADER.pack(20, DONE, 0, sequence, 0) + bytes(4)
        return len(data)

    def recv(self, *_: object) -> bytes:
        return self._answer


def asking(kernel: object) -> RouteSocket:
    made = object.__new__(RouteSocket)
    made._socket, made._sequence = kernel, 0  # type: ignore[assignment]  # what it uses of a socket
    return made


def test_a_table_that_changed_while_it_was_read_is_read_again() -> None:
    assert asking(Changing(3)).dump(26, b"") == [b"one.", b"two."]


def test_half_a_table_is_never_taken_for_the_whole() -> None:
    with pytest.raises(KernelError, match="the table changed 5 times while it was read") as caught:
        asking(Changing(1000)).dump(26, b"")
    assert caught.value.code == errno.EINTR


@pytest.mark.parametrize("call", ["setsockopt", "bind"])
def test_a_socket_that_cannot_be_prepared_is_closed(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fail(*_: Any) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(socket.socket, call, fail)
    kept = []
    for _ in range(5):
        with pytest.raises(KernelError, match=r"netlink.*: No buffer space available|needs root") as caught:
            RouteSocket()
        kept.append(caught.value)  # its trace holds what the frames held
    assert len(os.listdir("/proc/self/fd")) == before
