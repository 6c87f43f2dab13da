"""Which subnet to ask etcd for: flannel's rules (pkg/subnet/etcd/local_manager.go, tryAcquireLease)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from random import Random

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.errors import OutOfSubnets
from flannel_ebpf.base.model import Lease

CANDIDATES = 100
"""flannel draws from the first hundred free subnets, so that nodes that start together seldom collide."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """Take over `lease`, which carries our public address already."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Try:
    """Create a lease for `subnet`, after deleting `stale`: leases of ours that the config rules out."""

    subnet: IPv4Network
    stale: tuple[Lease, ...] = ()


def choose(
    config: NetworkConfig,
    leases: Iterable[Lease],
    public_ip: IPv4Address,
    previous_subnet: IPv4Network | None,
    rng: Random,
) -> Reuse | Try:
    """Return the lease to take over or the subnet to try.

    The public address is the node's identity. Of several leases that carry it, a reservation comes first,
    then the previous subnet (from subnet.env), then the lowest. Reservations are never stale: they are the
    administrator's. Raises OutOfSubnets.
    """
    leases = tuple(leases)
    ours = [lease for lease in leases if lease.public_ip == public_ip]
    usable = [lease for lease in ours if _fits(config, lease)]
    if usable:
        return Reuse(
            min(usable, key=lambda it: (it.etcd_lease != 0, it.subnet != previous_subnet, it.subnet))
        )
    stale = tuple(lease for lease in ours if lease.etcd_lease != 0)
    taken = [lease.subnet for lease in leases if lease not in stale]
    if (
        previous_subnet is not None
        and _in_range(config, previous_subnet)
        and not any(previous_subnet.overlaps(subnet) for subnet in taken)
    ):
        return Try(previous_subnet, stale)
    free = _free_subnets(config, taken)
    if not free:
        raise OutOfSubnets(
            f"no free /{config.subnet_len} between SubnetMin {config.subnet_min} and SubnetMax "
            f"{config.subnet_max}: {len(leases)} leases hold them all"
        )
    return Try(rng.choice(free), stale)


def _fits(config: NetworkConfig, lease: Lease) -> bool:
    return lease.subnet6 is None and _in_range(config, lease.subnet)


def _in_range(config: NetworkConfig, subnet: IPv4Network) -> bool:
    return (
        subnet.prefixlen == config.subnet_len
        and config.subnet_min <= subnet.network_address <= config.subnet_max
    )


def _free_subnets(config: NetworkConfig, taken: Iterable[IPv4Network]) -> list[IPv4Network]:
    """Return the first CANDIDATES subnets, from SubnetMin upwards, that overlap none of `taken`."""
    size = 1 << (32 - config.subnet_len)
    cursor, last = int(config.subnet_min), int(config.subnet_max)
    free: list[IPv4Network] = []
    blocks = sorted((int(subnet.network_address), int(subnet.broadcast_address)) for subnet in taken)
    for first_taken, last_taken in [*blocks, (last + size, last + size)]:
        while cursor + size <= first_taken and cursor <= last and len(free) < CANDIDATES:
            free.append(IPv4Network((cursor, config.subnet_len)))
            cursor += size
        cursor = max(cursor, (last_taken // size + 1) * size)
    return free
