"""How a node joins its network: config from etcd, uplink, VTEP address, lease."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from flannel_ebpf.agent import supervisor
from flannel_ebpf.agent.wake import Stop
from flannel_ebpf.base.config import NetworkConfig, Pool, UdpConfig, VxlanConfig
from flannel_ebpf.base.errors import ConfigError, FlannelError, UnknownBackend
from flannel_ebpf.base.family import Address, Family, family_of, ipv4, ipv6
from flannel_ebpf.base.model import Claim, Endpoint, LeasePart, Mac, Uplink, named
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Node, Stack, backend_of, udp, vxlan
from flannel_ebpf.desired.objects import ROUTE_PROTOCOL
from flannel_ebpf.host import subnet_env
from flannel_ebpf.kernel.netlink.links import find_link, vxlan_link
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import PUBLIC_IP_FLAGS, find_uplinks
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


def with_told_addresses(options: Options, source: LeaseSource) -> Options:
    """Return the options with the public addresses that the source says this node has, if it says any."""
    given = {**options.public_ips, **source.addresses()}
    v4, v6 = given.get(Family.V4), given.get(Family.V6)
    return replace(options, public_ip=ipv4(v4) if v4 else None, public_ipv6=ipv6(v6) if v6 else None)


Way = tuple[Uplink, Address]
"""The uplink with its address of a family, and the address of that family that peers use."""


def choose_uplinks(seen: Seen, options: Options, config: NetworkConfig) -> list[Way]:
    """Return the uplink of each family of the network, and the address that peers use; raises ConfigError.

    host-gw refuses a public address that is not the uplink's own, as flannel does: peers route to it.
    """
    published = options.public_ips
    families = [pool.family for pool in config.pools]
    uplinks = find_uplinks(
        seen, families, options.iface, options.iface_regex, options.iface_can_reach, published
    )
    ways = [
        (uplink, published.get(family, uplink.ip)) for family, uplink in zip(families, uplinks, strict=True)
    ]
    for family, (uplink, public_ip) in zip(families, ways, strict=True):
        if config.backend_type == "host-gw" and public_ip != uplink.ip:
            raise ConfigError(
                PUBLIC_IP_FLAGS[family],
                str(public_ip),
                f"{uplink.name}'s own address {uplink.ip}: host-gw cannot cross NAT",
            )
    for pool, (uplink, _) in zip(config.pools, ways, strict=True):
        _hold_apart(pool, uplink, seen)
    return ways


def _hold_apart(pool: Pool, uplink: Uplink, seen: Seen) -> None:
    """Refuse a network of which a subnet could hold this node's address or gateway; flannel does not mind."""
    gateways = (
        (pool.family.address(route.gateway), "its gateway")
        for route in seen.routes(pool.family)
        if route.oif == uplink.ifindex and route.gateway and route.protocol != ROUTE_PROTOCOL
    )
    for address, what in ((uplink.ip, "its address"), *gateways):
        if address.version == pool.family and int(address) in pool.leasable:
            raise ConfigError(
                "the network config's Network",
                str(pool.network),
                f"a network apart from {uplink.name}'s, or one whose SubnetMin and SubnetMax leave out "
                f"{address}, {what}: else a lease takes this node off its own network",
            )


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


def take_lease(source: LeaseSource, options: Options, config: NetworkConfig, ways: Sequence[Way]) -> Node:
    """Take a lease and return this node as it then stands; raises LeaseError, SourceError."""
    addresses = [public_ip for _, public_ip in ways]
    former = source.former(set(addresses))
    macs = [vtep_mac(config, public_ip, former) for public_ip in addresses]
    programs_stay = isinstance(config.backend, UdpConfig) and _programs_stay(options, config)
    claim = claim_of(config, zip(addresses, macs, strict=True), programs=programs_stay)
    previous = subnet_env.read(options.subnet_file)
    if previous.warning:
        log.warning("%s", previous.warning)
    lease = source.acquire(config, claim, previous.subnets)
    how = "kept" if source.reused else "acquired"
    published, name = named(addresses), ways[0][0].name
    log.info("subnet %s %s for public IP %s on %s", named(lease.subnets), how, published, name)
    parts = zip(config.pools, ways, lease.subnets, macs, strict=True)
    return Node(tuple(Stack(config, pool, *way, subnet, mac) for pool, way, subnet, mac in parts))


def claim_of(
    config: NetworkConfig, places: Iterable[tuple[Address, Mac | None]], *, programs: bool = False
) -> Claim:
    """Return what our own lease says, from our address and VTEP address in each family.

    `programs`: BPF programs stand here, which udp peers must know; others do not care.
    """
    backend = backend_of(config)
    said = [(address, *backend.lease_data(config, mac)) for address, mac in places]
    endpoints = [Endpoint(address, data) for address, _, data in said]
    if programs and isinstance(config.backend, UdpConfig):
        endpoints[0] = replace(endpoints[0], backend_data=udp.BPF_DATA)
    return Claim(said[0][1], tuple(endpoints))


def _programs_stay(options: Options, config: NetworkConfig) -> bool:
    """Say whether the programs of a former daemon are attached and will be used."""
    wanted = options.datapath != "kernel" and options.fastpath != "off"
    return wanted and config.network in pins.networks(options.bpf_pin_root)
