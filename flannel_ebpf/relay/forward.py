"""The two loops of the relay: TUN -> UDP and UDP -> TUN.

System calls are most of a packet's cost, so consecutive packets of one size to one peer leave as one
UDP_SEGMENT call and arrive as one UDP_GRO receive; on the wire it is still one packet per datagram. A
packet that needs more than the common case goes through `_second_look`, which names its counter.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Callable
from io import FileIO
from ipaddress import IPv4Address

from flannel_ebpf.base.options import SourceCheckChoice
from flannel_ebpf.relay.counters import INDEX
from flannel_ebpf.relay.packet import IPV4_MIN, decrease_ttl, net_unreachable
from flannel_ebpf.relay.peers import PeerTable

UDP_SEGMENT = 103
UDP_GRO = 104
"""Socket options of linux/udp.h that Python 3.11 has no names for."""

_HEADER = struct.Struct("!BxH4xB3xII")
"""Version and header length, total length, TTL, source, destination."""
_MAX_SEGMENTS = 64
_MAX_PAYLOAD = 65507
_BUFFER = 1 << 18

Refresh = Callable[[], None]
"""Brings the peer table up to date when the peers file has changed; cheap when it has not."""


class ToPeers:
    """TUN -> UDP for one queue. `row` are this worker's counters, `address` the node's own on the TUN."""

    def __init__(
        self,
        tun: FileIO,
        sock: socket.socket,
        table: PeerTable,
        row: memoryview,
        *,
        mtu: int,
        port: int,
        address: IPv4Address,
        batch: bool,
    ) -> None:
        self._tun = tun
        self._sock = sock
        self._table = table
        self._row = row
        self._mtu = mtu
        self._port = port
        self._address = address.packed
        self._segments = _MAX_SEGMENTS if batch else 1
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)

    def run(self, refresh: Refresh) -> None:
        """Forward for ever. Sleeps while the TUN is empty, so a lone packet waits for no other."""
        poll = select.poll()
        poll.register(self._tun, select.POLLIN)
        while True:
            poll.poll()
            refresh()
            while self.burst():
                refresh()

    def burst(self) -> bool:
        """Forward what the TUN holds; True when the buffer was full before the TUN was empty."""
        buffer, view, mtu, segments = self._buffer, self._view, self._mtu, self._segments
        readinto, unpack, hops = self._tun.readinto, _HEADER.unpack_from, self._table.next_hops
        room = mtu + 1
        last = _BUFFER - room
        peer, start, end, size, count = "", 0, 0, 0, 0
        while end < last:
            length = readinto(view[end : end + room])
            if not length:
                break
            version, _, ttl, _, dst = unpack(buffer, end)
            hop = hops.get(dst)
            if hop is None or ttl <= 1 or not 0x45 <= version < 0x50 or not IPV4_MIN <= length <= mtu:
                hop = self._second_look(end, length)
                if hop is None:
                    continue
            high = buffer[end + 10]
            if high < 0xFE:  # decrease_ttl without its call
                buffer[end + 8] = ttl - 1
                buffer[end + 10] = high + 1
            else:
                decrease_ttl(buffer, end)
            if count and (
                length > size or hop != peer or count == segments or end + length - start > _MAX_PAYLOAD
            ):
                self._send(start, end, size, count, peer)
                start, count = end, 0
            if not count:
                peer, size = hop, length
            count += 1
            end += length
            if length < size:  # only the last segment may be shorter
                self._send(start, end, size, count, peer)
                start, count = end, 0
        if count:
            self._send(start, end, size, count, peer)
        return end >= last

    def _second_look(self, offset: int, length: int) -> str | None:
        """Return the next hop of a packet that may go on; else count it, answer it if it is due, None."""
        version, _, ttl, _, dst = _HEADER.unpack_from(self._buffer, offset)
        if length < IPV4_MIN or not 0x45 <= version < 0x50:
            ipv6 = length > 0 and version >> 4 == 6
            self._row[INDEX["tx_ipv6" if ipv6 else "tx_malformed"]] += 1
            return None
        if length > self._mtu:
            self._row[INDEX["tx_oversize"]] += 1
            return None
        hop = self._table.next_hop(dst)
        if hop is None:
            self._row[INDEX["tx_no_route"]] += 1
            self._answer(bytes(self._view[offset : offset + length]))
        elif ttl <= 1:
            self._row[INDEX["tx_ttl"]] += 1
            return None
        return hop

    def _answer(self, offender: bytes) -> None:
        reply = net_unreachable(offender, self._address)
        if reply is None:
            return
        try:
            self._tun.write(reply)
        except OSError:
            return  # TUN was taken down meanwhile; the offender is counted
        self._row[INDEX["icmp_unreachable"]] += 1

    def _send(self, start: int, end: int, size: int, count: int, peer: str) -> None:
        """Send `count` packets of `size` bytes (the last may be shorter) as one datagram each."""
        data = self._view[start:end]
        try:
            if count == 1:
                self._sock.sendto(data, (peer, self._port))
            else:
                segment = (socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", size))
                self._sock.sendmsg((data,), (segment,), 0, (peer, self._port))
        except OSError:
            self._send_each(data, size, peer)
            return
        self._row[_TX_SENT] += count
        self._row[_TX_BYTES] += end - start

    def _send_each(self, data: memoryview, size: int, peer: str) -> None:
        """Send one by one: a refused batch (path MTU, no segmentation) must not lose every packet."""
        for offset in range(0, len(data), size):
            packet = data[offset : offset + size]
            try:
                self._sock.sendto(packet, (peer, self._port))
            except OSError:
                self._row[INDEX["tx_error"]] += 1
            else:
                self._row[_TX_SENT] += 1
                self._row[_TX_BYTES] += len(packet)


class FromPeers:
    """UDP -> TUN for one queue. `row` are this worker's counters, `source_check` the option of that name."""

    def __init__(
        self,
        tun: FileIO,
        sock: socket.socket,
        table: PeerTable,
        row: memoryview,
        *,
        mtu: int,
        source_check: SourceCheckChoice,
    ) -> None:
        self._tun = tun
        self._sock = sock
        self._table = table
        self._row = row
        self._mtu = mtu
        self._check = source_check != "off"
        self._drop = source_check == "drop"
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)

    def run(self, refresh: Refresh) -> None:
        """Forward for ever; sleeps in the receive."""
        receive, space = self._sock.recvmsg_into, socket.CMSG_SPACE(4)
        buffers = (self._view,)
        while True:
            length, notes, _, (sender, _) = receive(buffers, space)
            refresh()
            segment = int.from_bytes(notes[0][2], sys.byteorder) if notes else length
            self.deliver(sender, length, segment or 1)

    def deliver(self, sender: str, length: int, segment: int) -> None:
        """Take the first `length` bytes of the buffer as datagrams of `segment` bytes from `sender`."""
        check = self._check
        if check and not self._table.is_member(sender):
            self._row[INDEX["rx_not_member"]] += -(-length // segment) or 1
            if self._drop:
                return
            check = False
        buffer, view, mtu, write = self._buffer, self._view, self._mtu, self._tun.write
        unpack, senders = _HEADER.unpack_from, self._table.senders
        delivered = octets = 0
        for offset in range(0, length or 1, segment):
            size = min(segment, length - offset)
            version, total, ttl, src, _ = unpack(buffer, offset)
            if (
                (check and (sender, src) not in senders)
                or ttl <= 1
                or not 0x45 <= version < 0x50
                or not IPV4_MIN <= total <= size <= mtu
            ) and not self._second_look(sender, offset, size, check):
                continue
            high = buffer[offset + 10]
            if high < 0xFE:  # decrease_ttl without its call
                buffer[offset + 8] = ttl - 1
                buffer[offset + 10] = high + 1
            else:
                decrease_ttl(buffer, offset)
            try:
                write(view[offset : offset + size])
            except OSError:
                self._row[INDEX["rx_error"]] += 1
                continue
            delivered += 1
            octets += size
        self._row[_RX_DELIVERED] += delivered
        self._row[_RX_BYTES] += octets

    def _second_look(self, sender: str, offset: int, size: int, check: bool) -> bool:
        """Say whether the packet may go on; else count it."""
        version, total, ttl, src, _ = _HEADER.unpack_from(self._buffer, offset)
        if size < IPV4_MIN or not 0x45 <= version < 0x50 or total < IPV4_MIN:
            refusal = "rx_malformed"
        elif size > self._mtu:
            refusal = "rx_oversize"
        elif total > size:
            refusal = "rx_truncated"
        else:
            if check and not self._table.may_send(sender, src):
                self._row[INDEX["rx_foreign_source"]] += 1
                if self._drop:
                    return False
            if ttl > 1:
                return True
            refusal = "rx_ttl"
        self._row[INDEX[refusal]] += 1
        return False


_TX_SENT, _TX_BYTES = INDEX["tx_sent"], INDEX["tx_bytes"]
_RX_DELIVERED, _RX_BYTES = INDEX["rx_delivered"], INDEX["rx_bytes"]
