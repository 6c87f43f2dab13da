"""Which subnet to ask etcd for: flannel's rules (pkg/subnet/etcd/local_manager.go, tryAcquireLease)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from random import Random

from flannel_ebpf.base.config import NetworkConfig, Pool
from flannel_ebpf.base.errors import OutOfSubnets
from flannel_ebpf.base.family import Network, in_order
from flannel_ebpf.base.model import Claim, Lease

CANDIDATES = 100
"""flannel draws from the first hundred free subnets, so that nodes that start together seldom collide."""


@dataclass(frozen=True, slots=True)
class Reuse:
    """Take over `lease`, which carries our public address already."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class Try:
    """Create a lease of `subnets`, one of each family, after deleting `stale`: ours that do not fit."""

    subnets: tuple[Network, ...]
    stale: tuple[Lease, ...] = ()


def choose(
    config: NetworkConfig, leases: Iterable[Lease], node: Claim, previous: Collection[Network], rng: Random
) -> Reuse | Try:
    """Return the lease to take over or the subnets to try.

    The node's first public address is its identity. Of several leases that carry it, a reservation comes
    first, then one with a `previous` subnet (from subnet.env), then the lowest. Reservations are never stale:
    they are the administrator's. Each family's subnet is chosen by itself. Raises OutOfSubnets.
    """
    leases = tuple(leases)
    ours = [lease for lease in leases if lease.held_by(node)]
    usable = [lease for lease in ours if _fits(config, lease) and not rival(lease, leases)]
    if usable:
        return Reuse(min(usable, key=lambda it: _preference(it, previous)))
    stale = tuple(lease for lease in ours if lease.etcd_lease != 0)
    held = [subnet for lease in leases if lease not in stale for subnet in lease.subnets]
    return Try(tuple(_pick(pool, held, previous, rng) for pool in config.pools), stale)


def rival(lease: Lease, leases: Iterable[Lease]) -> Lease | None:
    """Return another node's lease that was there before `lease` and shares addresses with it.

    Etcd only knows whole keys, so two nodes that choose at the same time may create keys that differ in one
    family and agree in the other. Whoever created the second finds the first when it looks again, and yields.
    """
    for other in leases:
        earlier = other.create_revision < lease.create_revision and not other.held_by(lease.claim)
        if earlier and shared(lease.subnets, other.subnets):
            return other
    return None


def shared(some: Iterable[Network], others: Collection[Network]) -> bool:
    """Say whether two leases' subnets have addresses in common."""
    return any(_overlap(one, other) for one in some for other in others)


def _fits(config: NetworkConfig, lease: Lease) -> bool:
    pairs = zip(config.pools, lease.subnets, strict=False)
    return len(config.pools) == len(lease.parts) and all(pool.offers(subnet) for pool, subnet in pairs)


def _preference(lease: Lease, previous: Collection[Network]) -> tuple[bool, bool, list[tuple[int, int, int]]]:
    kept = any(subnet in previous for subnet in lease.subnets)
    return lease.etcd_lease != 0, not kept, [in_order(subnet) for subnet in lease.subnets]


def _pick(pool: Pool, held: Sequence[Network], previous: Iterable[Network], rng: Random) -> Network:
    """Return the previous subnet of one family where it is free, else one of the first that are."""
    taken = [subnet for subnet in held if subnet.version == pool.family]
    for subnet in previous:
        if pool.offers(subnet) and not shared([subnet], taken):
            return subnet
    free = _free_subnets(pool, taken)
    if not free:
        raise OutOfSubnets(
            f"no free {pool.family} /{pool.subnet_len} between SubnetMin {pool.subnet_min} and SubnetMax "
            f"{pool.subnet_max}: {len(taken)} leases hold them all"
        )
    return rng.choice(free)


def _overlap(one: Network, two: Network) -> bool:
    if one.version != two.version:
        return False
    shift = one.max_prefixlen - min(one.prefixlen, two.prefixlen)
    return int(one.network_address) >> shift == int(two.network_address) >> shift


def _free_subnets(pool: Pool, taken: Iterable[Network]) -> list[Network]:
    """Return the first CANDIDATES subnets, from SubnetMin upwards, that overlap none of `taken`."""
    size = 1 << (pool.family.bits - pool.subnet_len)
    cursor, last = int(pool.subnet_min), int(pool.subnet_max)
    free: list[Network] = []
    blocks = sorted((int(subnet.network_address), int(subnet.broadcast_address)) for subnet in taken)
    for first_taken, last_taken in [*blocks, (last + size, last + size)]:
        while cursor + size <= first_taken and cursor <= last and len(free) < CANDIDATES:
            free.append(pool.family.network(cursor, pool.subnet_len))
            cursor += size
        cursor = max(cursor, (last_taken // size + 1) * size)
    return free
