"""How a node joins its network: config from etcd, uplink, VTEP address, lease."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import TypeVar

from flannel_ebpf.agent import supervisor
from flannel_ebpf.agent.wake import Stop
from flannel_ebpf.base.config import NetworkConfig, UdpConfig, VxlanConfig
from flannel_ebpf.base.errors import ConfigError, FlannelError, UnknownBackend
from flannel_ebpf.base.family import Address, Family, family_of
from flannel_ebpf.base.model import Claim, Endpoint, LeasePart, Mac, Uplink, named
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Node, Stack, backend_of, udp, vxlan
from flannel_ebpf.host import subnet_env
from flannel_ebpf.kernel.netlink.links import find_link, vxlan_link
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import find_uplink
from flannel_ebpf.leases.source import LeaseSource

log = logging.getLogger(__name__)

RETRY = 1.0
"""Seconds between attempts, flanneld's own."""

_T = TypeVar("_T")


class Stopped(FlannelError):
    """The daemon was told to stop while it waited."""


def persist(attempt: Callable[[], _T], what: str, stop: Stop) -> _T:
    """Return what `attempt` returns once it succeeds; say each new reason once.

    Raises Stopped, and UnknownBackend at once: waiting will not give us a backend, and flanneld exits too.
    """
    said = ""
    while not stop.is_set():
        try:
            return attempt()
        except UnknownBackend:
            raise
        except FlannelError as error:
            if str(error) != said and not stop.is_set():
                log.warning("%s, trying again every %g s: %s", what, RETRY, error)
                supervisor.notify(f"STATUS={what}: {error}")
                said = str(error)
            stop.wait(RETRY)
    raise Stopped(f"stopped while {what}")


def read_config(source: LeaseSource) -> NetworkConfig:
    """Return the network config; raises ConfigError also when there is none yet, and SourceError."""
    config = source.network_config()
    if any(pool.family is Family.V6 for pool in config.pools):
        where = "the network config's key EnableIPv6"
        raise ConfigError(where, True, "false or absent: IPv6 has no data path yet")
    return config


def with_told_address(options: Options, source: LeaseSource) -> Options:
    """Return the options with the public address that the source says this node has, if it says any."""
    told = source.addresses().get(Family.V4)
    return replace(options, public_ip=told) if isinstance(told, IPv4Address) else options


def choose_uplink(seen: Seen, options: Options, config: NetworkConfig) -> tuple[Uplink, Address]:
    """Return the uplink and the address that peers use; raises ConfigError.

    host-gw refuses a public address that is not the uplink's own, as flannel does: peers route to it.
    """
    uplink = find_uplink(seen, options.iface, options.iface_regex, options.iface_can_reach, options.public_ip)
    public_ip = options.public_ip or uplink.ip
    if config.backend_type == "host-gw" and public_ip != uplink.ip:
        raise ConfigError(
            "--public-ip",
            str(public_ip),
            f"{uplink.name}'s own address {uplink.ip}: host-gw cannot cross NAT",
        )
    return uplink, public_ip


def vtep_mac(config: NetworkConfig, public_ip: Address, former: Iterable[LeasePart]) -> Mac | None:
    """Return our VTEP's address: our former lease's, else the device's, else one derived from this host.

    So it survives restarts, a device deleted or altered while no daemon ran, and reboots, and peers never
    need to hear of a new one. Each family has its own.
    """
    if not isinstance(config.backend, VxlanConfig):
        return None
    family = family_of(public_ip)
    for part in former:
        if part.subnet.version == family and part.backend_type == vxlan.BACKEND_TYPE:
            try:
                return vxlan.vtep_mac_of(part)
            except ConfigError as error:
                log.warning("our own lease is not used for the VTEP address: %s", error)
    name = vxlan.overlay_name(config, family)
    with RouteSocket() as netlink:
        link = find_link(netlink, name)
    device = vxlan_link(link) if link else None
    return device.mac if device else _derived_mac(config, name, public_ip)


def _derived_mac(config: NetworkConfig, device: str, public_ip: Address) -> Mac:
    try:
        machine = Path("/etc/machine-id").read_text().strip()
    except OSError:
        machine = ""
    seed = f"{machine} {config.network} {device} {public_ip}"
    octets = bytearray(hashlib.blake2b(seed.encode(), digest_size=6).digest())
    octets[0] = octets[0] & 0xFE | 0x02  # unicast, locally administered, as flannel's random ones
    return Mac(bytes(octets))


def take_lease(
    source: LeaseSource, options: Options, config: NetworkConfig, uplink: Uplink, public_ip: Address
) -> Node:
    """Take a lease and return this node as it then stands; raises LeaseError, SourceError."""
    mac = vtep_mac(config, public_ip, source.former({public_ip}))
    claim = claim_of(config, [(public_ip, mac)])
    if isinstance(config.backend, UdpConfig) and _programs_stay(options, config):
        claim = Claim("", (Endpoint(public_ip, udp.BPF_DATA),))
    previous = subnet_env.read(options.subnet_file)
    if previous.warning:
        log.warning("%s", previous.warning)
    lease = source.acquire(config, claim, previous.subnets)
    how = "kept" if source.reused else "acquired"
    log.info("subnet %s %s for public IP %s on %s", named(lease.subnets), how, public_ip, uplink.name)
    return Node((Stack(config, config.pools[0], uplink, public_ip, lease.subnets[0], mac),))


def claim_of(config: NetworkConfig, ways: Iterable[tuple[Address, Mac | None]]) -> Claim:
    """Return what our own lease says, from our address and VTEP address in each family."""
    backend = backend_of(config)
    said = [(address, *backend.lease_data(config, mac)) for address, mac in ways]
    return Claim(said[0][1], tuple(Endpoint(address, data) for address, _, data in said))


def _programs_stay(options: Options, config: NetworkConfig) -> bool:
    """Say whether the programs of a former daemon are attached and will be used."""
    wanted = options.datapath != "kernel" and options.fastpath != "off"
    return wanted and config.network in pins.networks(options.bpf_pin_root)
