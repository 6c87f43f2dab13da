"""What a network device does to packets on their way out, asked with the ethtool ioctl.

Works in every namespace, unlike /sys/class/net, which shows one. Layouts: linux/ethtool.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import re
import socket
import struct

_SIOCETHTOOL = 0x8946
_GET_DRIVER, _GET_TX_CHECKSUM = 0x3, 0x16
_DRIVER = struct.Struct("=I 32s 32s 32s 32s 68x")  # ethtool_drvinfo: command, driver, version, firmware, bus
_VALUE = struct.Struct("=II")
_PCI = re.compile(rb"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_PARAVIRTUAL = (b"virtio_net", b"vmxnet3")
"""They sit on PCI, and hand packets to a neighbour on the same host as they are."""


def finishes(name: str) -> bool:
    """Say whether what leaves device `name` is cut to size and has its checksums, whoever receives it.

    Hardware does that; for a device without checksum offload the kernel does (`ethtool -K NAME tx off`). A
    device that tells nothing is taken for a virtual one, which passes packets on as they are.
    """
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            if not _VALUE.unpack(_ask(sock, name, _VALUE.pack(_GET_TX_CHECKSUM, 0)))[1]:
                return True
            answer = _ask(sock, name, _DRIVER.pack(_GET_DRIVER, b"", b"", b"", b""))
    except OSError:
        return False
    return is_hardware(answer)


def is_hardware(answer: bytes) -> bool:
    """Say whether an ethtool_drvinfo tells of a device with a PCI function of its own."""
    _, driver, _, _, bus = (
        field.rstrip(b"\0") if isinstance(field, bytes) else b"" for field in _DRIVER.unpack(answer)
    )
    return driver not in _PARAVIRTUAL and _PCI.fullmatch(bus) is not None


def _ask(sock: socket.socket, name: str, question: bytes) -> bytes:
    """Return the kernel's answer, which it writes over the question. The ifreq holds a pointer to it."""
    buffer = ctypes.create_string_buffer(question, len(question))
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(buffer))
    fcntl.ioctl(sock, _SIOCETHTOOL, request)
    return buffer.raw
