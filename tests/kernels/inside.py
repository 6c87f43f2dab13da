"""Devices that iproute2 cannot set up, made in the current network namespace: `inside.py WHAT ...`.

wireguard NAME PRIVATE PORT        make a device, print its public key
peer NAME PUBLIC ADDRESS PORT ROUTE
ipvs ADDRESS PORT TO PORT
"""

from __future__ import annotations

import socket
import sys

from pyroute2 import IPVS, IPRoute, IPVSDest, IPVSService, WireGuard

_MASQUERADE = 0  # IP_VS_CONN_F_MASQ, as kube-proxy asks for


def wireguard(name: str, private: str, port: str) -> None:
    with IPRoute() as routes, WireGuard() as guard:
        routes.link("add", ifname=name, kind="wireguard")
        guard.set(name, private_key=private, listen_port=int(port))
        sys.stdout.write(guard.info(name)[0].get("WGDEVICE_A_PUBLIC_KEY").decode())


def peer(name: str, public: str, address: str, port: str, route: str) -> None:
    with WireGuard() as guard:
        there = {"endpoint_addr": address, "endpoint_port": int(port), "allowed_ips": [route]}
        guard.set(name, peer={"public_key": public, **there})


def ipvs(address: str, port: str, to: str, to_port: str) -> None:
    with IPVS() as virtual:
        service = IPVSService(addr=address, port=int(port), protocol=socket.IPPROTO_TCP)
        virtual.service("add", service=service)
        end = IPVSDest(addr=to, port=int(to_port), fwd_method=_MASQUERADE)
        virtual.dest("add", service=service, dest=end)


if __name__ == "__main__":
    {"wireguard": wireguard, "peer": peer, "ipvs": ipvs}[sys.argv[1]](*sys.argv[2:])
