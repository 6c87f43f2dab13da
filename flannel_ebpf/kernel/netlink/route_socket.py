"""rtnetlink at its lowest: one socket, messages in batches with one answer each, dumps, attributes.

Everything that is read, and everything that comes in thousands, goes through here: decoded by hand it
takes a tenth of the time that a general library needs. Layouts: linux/netlink.h, linux/rtnetlink.h.
Integers are host byte order, addresses network byte order.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from flannel_ebpf.base.errors import KernelError, edge

NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP = 0x1, 0x4, 0x300
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP_INTR = 0x10
NLMSG_ERROR, NLMSG_DONE = 2, 3

_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # nlattr: length, type
_ERROR = struct.Struct("=i")
U32 = struct.Struct("=I")
_ATTRIBUTE_TYPE = 0x3FFF  # without NLA_F_NESTED and NLA_F_NET_BYTEORDER

_SOL_NETLINK, _CAP_ACK, _EXT_ACK, _GET_STRICT_CHK = 270, 10, 11, 12
_SO_RCVBUFFORCE = 33
_RECEIVE_BUFFER = 8 << 20
_BATCH = 512  # answers of one batch must fit the receive buffer: about 1 kB of kernel memory each
_TIMEOUT = 10.0
_DUMP_TRIES = 5


class Request(NamedTuple):
    """One rtnetlink message: type, flags besides NLM_F_REQUEST, body after nlmsghdr."""

    kind: int
    flags: int
    body: bytes


class Answer(NamedTuple):
    """What the kernel said to one request: errno (0 is success), its own words, and the object asked for."""

    code: int
    text: str
    body: bytes


class RouteSocket:
    """A netlink socket of the network namespace of the thread that makes it; one thread at a time.

    `protocol`: rtnetlink, or another that speaks in the same attributes.
    """

    def __init__(
        self, groups: int = 0, buffer: int = _RECEIVE_BUFFER, protocol: int = socket.NETLINK_ROUTE
    ) -> None:
        with edge("netlink socket"):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, protocol)
        try:
            with edge("netlink socket"):
                self._prepare(groups, buffer)
        except KernelError:
            self._socket.close()
            raise
        self._sequence = 0

    def _prepare(self, groups: int, buffer: int) -> None:
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer)
        except PermissionError as error:
            raise KernelError("netlink: needs root, or CAP_NET_ADMIN", error.errno or 0) from error
        for option in (_CAP_ACK, _EXT_ACK, _GET_STRICT_CHK):
            self._socket.setsockopt(_SOL_NETLINK, option, 1)
        self._socket.settimeout(_TIMEOUT)
        self._socket.bind((0, groups))

    def __enter__(self) -> RouteSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the descriptor, for poll."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """Our address on netlink: notifications of changes that we made carry it."""
        return int(self._socket.getsockname()[0])

    def dump(self, kind: int, body: bytes) -> list[bytes]:
        """Return the bodies of all objects that a dump request yields.

        The kernel says when a table changed under the dump (NLM_F_DUMP_INTR); the dump is then made
        again. Raises KernelError, with EINTR when it changed every time.
        """
        for _ in range(_DUMP_TRIES):
            bodies, whole = self._dump_once(kind, body)
            if whole:
                return bodies
        raise KernelError(
            f"netlink dump {kind}: the table changed {_DUMP_TRIES} times while it was read", errno.EINTR
        )

    def _dump_once(self, kind: int, body: bytes) -> tuple[list[bytes], bool]:
        self._sequence += 1
        sequence = self._sequence
        length = _HEADER.size + len(body)
        self._send(_HEADER.pack(length, kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, 0) + body)
        bodies: list[bytes] = []
        whole = True
        while True:
            data = self.receive()
            offset = 0
            while offset < len(data):
                size, answer, flags, number, _ = _HEADER.unpack_from(data, offset)
                end = offset + size
                if number == sequence:
                    whole = whole and not flags & NLM_F_DUMP_INTR
                    if answer in (NLMSG_DONE, NLMSG_ERROR):
                        code = -_ERROR.unpack_from(data, offset + 16)[0] if size >= 20 else 0
                        if code:
                            raise KernelError(f"netlink dump {kind}: {os.strerror(code)}", code)
                        return bodies, whole
                    bodies.append(data[offset + 16 : end])
                offset = (end + 3) & ~3

    def exchange(self, requests: Sequence[Request]) -> list[Answer]:
        """Send all requests, many at a time, and return the answer to each, in order.

        A request with NLM_F_ACK is answered by an acknowledgement, one without by the object it asks
        for or by an error. The kernel works through them in order and one failure stops none of the rest.
        """
        answers: list[Answer] = []
        for start in range(0, len(requests), _BATCH):
            answers += self._exchange_batch(requests[start : start + _BATCH])
        return answers

    def _exchange_batch(self, requests: Sequence[Request]) -> list[Answer]:
        first = self._sequence + 1
        self._sequence += len(requests)
        packed = []
        for number, (kind, flags, body) in enumerate(requests, first):
            header = _HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST, number, 0)
            packed.append(header + body + bytes(-len(body) % 4))
        self._send(b"".join(packed))
        answers: list[Answer | None] = [None] * len(requests)
        missing = len(requests)
        while missing:
            data = self.receive()
            offset = 0
            while offset < len(data):
                size, kind, flags, number, _ = _HEADER.unpack_from(data, offset)
                index = number - first
                if 0 <= index < len(requests) and answers[index] is None:
                    answers[index] = _answer(kind, flags, data[offset + 16 : offset + size])
                    missing -= 1
                offset += (size + 3) & ~3
        return [answer for answer in answers if answer is not None]

    def _send(self, data: bytes) -> None:
        with edge("netlink"):
            self._socket.send(data)

    def receive(self) -> bytes:
        """Return the next datagram, which holds whole messages. Raises KernelError."""
        try:
            return self._socket.recv(1 << 17)
        except OSError as error:
            raise KernelError(
                f"netlink: {error.strerror or error}", error.errno or errno.ETIMEDOUT
            ) from error


def _answer(kind: int, flags: int, body: bytes) -> Answer:
    if kind != NLMSG_ERROR:
        return Answer(0, "", body)
    code = -_ERROR.unpack_from(body)[0]
    if not code:
        return Answer(0, "", b"")
    text = attributes(body, 20).get(1, b"") if flags & 0x200 else b""  # NLM_F_ACK_TLVS, NLMSGERR_ATTR_MSG
    return Answer(code, text.rstrip(b"\0").decode(errors="replace"), b"")


def attribute(kind: int, payload: bytes) -> bytes:
    """Return one attribute, padded to four octets."""
    return _ATTRIBUTE.pack(4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def attributes(data: bytes, offset: int = 0) -> dict[int, bytes]:
    """Return attribute type -> payload of all attributes from `offset` on; a later one of a type wins."""
    found: dict[int, bytes] = {}
    unpack = _ATTRIBUTE.unpack_from
    end = len(data)
    while offset + 4 <= end:
        length, kind = unpack(data, offset)
        if length < 4:
            break
        found[kind & _ATTRIBUTE_TYPE] = data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    return found


def messages(data: bytes) -> list[tuple[int, int, bytes]]:
    """Return (type, sender's port, body) of every message in one datagram."""
    found = []
    offset = 0
    while offset + 16 <= len(data):
        size, kind, _, _, port = _HEADER.unpack_from(data, offset)
        found.append((kind, port, data[offset + 16 : offset + size]))
        offset += (size + 3) & ~3
    return found
