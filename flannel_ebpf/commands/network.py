"""Commands about the cluster: its network config and reserved subnets, both in etcd."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

import click

from flannel_ebpf.base import family
from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.config_keys import unknown_keys
from flannel_ebpf.base.errors import ConfigError, FlannelError, LeaseConflict
from flannel_ebpf.base.family import Family, family_of
from flannel_ebpf.base.model import Claim, Endpoint, Lease, named
from flannel_ebpf.commands.flags import etcd_flags, options_from
from flannel_ebpf.commands.told import etcd_options
from flannel_ebpf.commands.values import Address, Subnet
from flannel_ebpf.leases.allocate import shared
from flannel_ebpf.leases.lease_format import config_key, subnet_key

if TYPE_CHECKING:
    from flannel_ebpf.leases.etcd import Registry

LEASE_TTL = 86_400
"""Seconds: how long flannel's leases live."""


@click.group()
def config() -> None:
    """Read and write the network config of the cluster."""


@config.command("get")
@etcd_flags
def get_config(**values: Any) -> None:
    """Print the network config as it stands in etcd, and fail if it cannot be used."""
    with _registry(values) as registry:
        text = registry.network_config()
        if text is not None:
            click.echo(text)
        _checked(text, registry)


@config.command("set")
@click.argument("text", metavar="JSON|-")
@etcd_flags
def set_config(text: str, **values: Any) -> None:
    """Check a network config and write it to etcd; `-` reads it from standard input.

    Running daemons keep the config they started with, as flanneld does.
    """
    text, checked = _given(text)
    with _registry(values) as registry:
        registry.set_network_config(text.strip())
        key = config_key(registry.prefix)
    _tell(key, text, checked)


@config.command("diff")
@click.argument("text", metavar="JSON|-")
@etcd_flags
def diff_config(text: str, **values: Any) -> int:
    """Check a network config and show how it differs from that in etcd; the status is 1 if it does."""
    text, _ = _given(text)
    with _registry(values) as registry:
        standing = registry.network_config() or "{}"
        key = config_key(registry.prefix)
    lines = [*unified_diff(_lines(standing), _lines(text), key, "given", lineterm="")]
    for line in lines:
        click.echo(line)
    return 1 if lines else 0


@config.command("edit")
@etcd_flags
def edit_config(**values: Any) -> None:
    """Change the network config in $EDITOR; it is checked, and written only over what was read."""
    with _registry(values) as registry:
        standing = registry.network_config() or ""
        _checked(standing or None, registry)
        key = config_key(registry.prefix)
        text = click.edit("\n".join(_lines(standing)) + "\n", extension=".json")
        if text is None or _lines(text) == _lines(standing):
            click.echo(f"{key}: nothing is changed")
            return
        try:
            checked = parse_network_config(text, "editor")
            registry.replace_network_config(standing, text.strip())
        except FlannelError:
            click.echo(text)  # nothing of an operator's work is lost
            raise
    _tell(key, text, checked)


def _given(text: str) -> tuple[str, NetworkConfig]:
    source = "command line"
    if text == "-":
        text, source = sys.stdin.buffer.read().decode(errors="replace"), "standard input"
    return text, parse_network_config(text, source)


def _lines(text: str) -> list[str]:
    """Return a config a key a line, and what is no JSON as it is."""
    with suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text), indent=2)
    return text.splitlines()


def _tell(key: str, text: str, checked: NetworkConfig) -> None:
    networks = ", ".join(f"{pool.network} in /{pool.subnet_len}" for pool in checked.pools)
    click.echo(f"{key}: network {networks}, backend {checked.backend_type}")
    for name in unknown_keys(text):
        click.echo(f"warning: key {name} is none of flannel's and is ignored", err=True)


@click.command()
@click.argument("subnets", type=Subnet(), nargs=-1, required=True, metavar="SUBNET...")
@click.option("--public-ip", type=Address(Family.V4), help="IPv4 address of the node that shall have it.")
@click.option("--public-ipv6", type=Address(Family.V6), help="IPv6 address, where the network has no IPv4.")
@etcd_flags
def reserve(
    subnets: tuple[family.Network, ...],
    public_ip: family.Address | None,
    public_ipv6: family.Address | None,
    **values: Any,
) -> None:
    """Keep SUBNET for one node for ever, whether it runs or not.

    In a dual-stack network give one of each family. A lease that the node holds on SUBNET becomes permanent
    where it stands.
    """
    with _registry(values) as registry:
        network = _checked(registry.network_config(), registry)
        subnets = _fitting(subnets, network)
        claim = _claim(network, public_ip, public_ipv6)
        snapshot = registry.snapshot()
        for lease in snapshot.leases:
            if lease.subnets != subnets and lease.held_by(claim):
                raise LeaseConflict(
                    f"{claim.public_ip} holds {named(lease.subnets)} already, and a node has one lease: "
                    f"stop the node and free that one before reserving {named(subnets)}"
                )
            if not lease.held_by(claim) and shared(lease.subnets, subnets):
                held_by = f"{named(lease.subnets)} belongs to {lease.public_ip}"
                raise LeaseConflict(f"{held_by}, so {claim.public_ip} cannot have it")
        held = next((lease for lease in snapshot.leases if lease.subnets == subnets), None)
        key = subnet_key(registry.prefix, subnets)
        if any(one.key == key for one in snapshot.skipped):
            raise LeaseConflict(f"etcd key {key} holds no lease: delete it, or mend what it holds")
        if held is None:
            registry.create_alone(Lease.of(subnets, claim), 0, snapshot)
        elif held.etcd_lease:
            registry.rewrite(held, ttl=0)
    click.echo(f"{named(subnets)} is reserved for {claim.public_ip}")


@click.command(short_help="Make a reserved SUBNET an ordinary lease.")
@click.argument("subnet", type=Subnet())
@click.option("--now", is_flag=True, help="Free it at once; a flanneld that uses it stops.")
@etcd_flags
def unreserve(subnet: family.Network, now: bool, **values: Any) -> None:
    """Make a reserved SUBNET an ordinary lease again: free after a day, unless its node renews it."""
    with _registry(values) as registry:
        held = next((lease for lease in registry.snapshot().leases if subnet in lease.subnets), None)
        if held is None or held.etcd_lease:
            what = "free" if held is None else f"an ordinary lease of {held.public_ip}"
            raise ConfigError("SUBNET", str(subnet), f"a reserved subnet; this one is {what}")
        if now:
            registry.delete(held)
        else:
            registry.rewrite(held, ttl=LEASE_TTL)
    words = named(held.subnets)
    click.echo(f"{words} is free" if now else f"{words} is an ordinary lease of {held.public_ip} now")


@contextmanager
def _registry(values: dict[str, Any]) -> Iterator[Registry]:
    from flannel_ebpf.leases.etcd import EtcdClient, Registry  # noqa: PLC0415 - gRPC is slow to import

    options = options_from(values)
    etcd = etcd_options(options)
    client = EtcdClient(etcd)
    try:
        yield Registry(client, etcd.prefix)
    finally:
        client.close()


def _checked(text: str | None, registry: Registry) -> NetworkConfig:
    source = f"etcd key {config_key(registry.prefix)}"
    if text is None:
        raise ConfigError(source, None, "a network config; write one with `flannel-ebpf config set`")
    return parse_network_config(text, source)


def _fitting(subnets: tuple[family.Network, ...], network: NetworkConfig) -> tuple[family.Network, ...]:
    """Return one subnet for each family, as they stand in a lease; refuse what no node would take."""
    found = []
    for pool in network.pools:
        mine = [subnet for subnet in subnets if subnet.version == pool.family]
        if len(mine) != 1 or not pool.offers(mine[0]):
            range_of = f"one /{pool.subnet_len} from {pool.subnet_min} to {pool.subnet_max}"
            raise ConfigError("SUBNET", ", ".join(map(str, mine)) or None, range_of)
        found += mine
    for subnet in subnets:
        if subnet not in found:
            raise ConfigError(
                "SUBNET", str(subnet), f"no {family_of(subnet)} subnet, which this network has not"
            )
    return tuple(found)


def _claim(network: NetworkConfig, *addresses: family.Address | None) -> Claim:
    """Return what a reservation says of the node, whose first address must be known."""
    given = {family_of(address): address for address in addresses if address}
    first = network.pools[0].family
    if first not in given:
        flag = {Family.V4: "--public-ip", Family.V6: "--public-ipv6"}[first]
        raise ConfigError(flag, None, f"the {first} address by which the cluster knows the node")
    families = (pool.family for pool in network.pools)
    return Claim("", tuple(Endpoint(given.get(one, one.unspecified)) for one in families))
