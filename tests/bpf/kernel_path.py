"""flannel's kernel vxlan path on one node, fed and observed by packet sockets: the wire format's oracle."""

from __future__ import annotations

import select
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.bpf.node import GATEWAY_MAC, OWN_IP, OWN_VTEP, PEER, POD, POD_MAC, SUBNET, UPLINK_MAC

ETH_P_ALL = 3
DEADLINE_S = 2.0
NEXT_HOP = "02:00:00:00:00:99"

SETUP = f"""
link add up0 address {UPLINK_MAC} mtu 1500 type veth peer name wire0 address {NEXT_HOP}
link add pod0 address {GATEWAY_MAC} mtu 1450 type veth peer name inpod0 address {POD_MAC}
link add flannel.1 address {OWN_VTEP} mtu 1450 type vxlan id 1 local {OWN_IP} dev up0 dstport 8472 \
nolearning udpcsum
link set up0 up
link set wire0 up
link set pod0 up
link set inpod0 up
link set flannel.1 up
address add {OWN_IP}/24 dev up0
address add {SUBNET.network_address}/32 dev flannel.1
address add {SUBNET.network_address + 1}/24 dev pod0
neighbour add {PEER.public_ip} lladdr {NEXT_HOP} dev up0 nud permanent
neighbour add {POD} lladdr {POD_MAC} dev pod0 nud permanent
neighbour add {PEER.subnet.network_address} lladdr {PEER.vtep} dev flannel.1 nud permanent
route add {PEER.subnet} via {PEER.subnet.network_address} dev flannel.1 onlink
"""


class KernelNode:
    """Built in the calling thread's network namespace, which must be new."""

    setup = SETUP
    station = (str(PEER.vtep), "flannel.1", str(PEER.public_ip))
    """Of the peer: its VTEP's MAC, our device, its public address."""

    def __init__(self) -> None:
        for name, value in self.sysctls().items():
            Path("/proc/sys/net", name).write_text(value)
        commands = self.setup.replace("\\\n", "")
        subprocess.run(["ip", "-batch", "-"], input=commands, text=True, check=True)
        mac, device, public_ip = self.station
        fdb = ["bridge", "fdb", "add", mac, "dev", device, "dst", public_ip]
        subprocess.run([*fdb, "self", "permanent"], check=True)
        self._wire, self._pod = _packet_socket("wire0"), _packet_socket("inpod0")

    @staticmethod
    def sysctls() -> dict[str, str]:
        """What the namespace must be set to before it has devices."""
        return {
            "ipv6/conf/all/disable_ipv6": "1",
            "ipv6/conf/default/disable_ipv6": "1",
            "ipv4/ip_forward": "1",
            "ipv4/conf/all/rp_filter": "0",
            "ipv4/conf/default/rp_filter": "0",
        }

    def close(self) -> None:
        self._wire.close()
        self._pod.close()

    def encapsulated(self, frame: bytes) -> bytes:
        """Return what leaves the uplink when the pod sends `frame`."""
        return _through(self._pod, frame, self._wire, lambda got: got[:6] == bytes.fromhex("020000000099"))

    def delivered(self, frame: bytes) -> bytes:
        """Return what the pod gets when `frame` reaches the uplink."""
        return _through(self._wire, frame, self._pod, lambda got: got[:6] == POD_MAC.octets)


def _packet_socket(name: str) -> socket.socket:
    one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    one.bind((name, ETH_P_ALL))
    return one


def _through(
    enter: socket.socket, frame: bytes, leave: socket.socket, mine: Callable[[bytes], bool]
) -> bytes:
    while select.select([leave], [], [], 0)[0]:
        leave.recv(65536)
    enter.send(frame)
    end = time.monotonic() + DEADLINE_S
    while select.select([leave], [], [], max(0, end - time.monotonic()))[0]:
        got, (_, _, kind, *_) = leave.recvfrom(65536)
        if kind != socket.PACKET_OUTGOING and mine(got):
            return got
    raise AssertionError(f"the kernel passed nothing on within {DEADLINE_S} s: {frame.hex()}")
