"""Commands about the cluster: its network config and reserved subnets, both in etcd."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from typing import TYPE_CHECKING, Any

import click

from flannel_ebpf.base.config import NetworkConfig, parse_network_config
from flannel_ebpf.base.errors import ConfigError, LeaseConflict
from flannel_ebpf.base.model import Lease
from flannel_ebpf.commands.flags import etcd_flags, options_from
from flannel_ebpf.commands.values import Address, Subnet
from flannel_ebpf.leases.lease_format import config_key

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
    source = "command line"
    if text == "-":
        text, source = sys.stdin.buffer.read().decode(errors="replace"), "standard input"
    parse_network_config(text, source)
    with _registry(values) as registry:
        registry.set_network_config(text.strip())


@click.command()
@click.argument("subnet", type=Subnet())
@click.option("--public-ip", type=Address(), required=True, help="Address of the node that shall have it.")
@etcd_flags
def reserve(subnet: IPv4Network, public_ip: IPv4Address, **values: Any) -> None:
    """Keep SUBNET for one node for ever, whether it runs or not.

    A lease that the node holds on SUBNET becomes permanent where it stands.
    """
    with _registry(values) as registry:
        _fits(subnet, _checked(registry.network_config(), registry))
        leases = registry.snapshot().leases
        for lease in leases:
            if lease.subnet != subnet and lease.public_ip == public_ip:
                raise LeaseConflict(
                    f"{public_ip} holds {lease.subnet} already, and a node has one subnet: "
                    f"stop the node and free that one before reserving {subnet}"
                )
        held = next((lease for lease in leases if lease.subnet == subnet), None)
        if held is None:
            registry.create(Lease(subnet=subnet, public_ip=public_ip), ttl=0)
        elif held.public_ip != public_ip:
            raise LeaseConflict(f"{subnet} belongs to {held.public_ip}, so {public_ip} cannot have it")
        elif held.etcd_lease:
            registry.rewrite(held, ttl=0)
    click.echo(f"{subnet} is reserved for {public_ip}")


@click.command(short_help="Make a reserved SUBNET an ordinary lease.")
@click.argument("subnet", type=Subnet())
@click.option("--now", is_flag=True, help="Free it at once; a flanneld that uses it stops.")
@etcd_flags
def unreserve(subnet: IPv4Network, now: bool, **values: Any) -> None:
    """Make a reserved SUBNET an ordinary lease: free after a day, unless its node renews it."""
    with _registry(values) as registry:
        held = next((lease for lease in registry.snapshot().leases if lease.subnet == subnet), None)
        if held is None or held.etcd_lease:
            what = "free" if held is None else f"an ordinary lease of {held.public_ip}"
            raise ConfigError("SUBNET", str(subnet), f"a reserved subnet; this one is {what}")
        if now:
            registry.delete(held)
        else:
            registry.rewrite(held, ttl=LEASE_TTL)
    click.echo(f"{subnet} is free" if now else f"{subnet} is an ordinary lease of {held.public_ip} now")


@contextmanager
def _registry(values: dict[str, Any]) -> Iterator[Registry]:
    from flannel_ebpf.leases.etcd import EtcdClient, Registry  # noqa: PLC0415 - gRPC is slow to import

    options = options_from(values)
    client = EtcdClient(options.etcd)
    try:
        yield Registry(client, options.etcd.prefix)
    finally:
        client.close()


def _checked(text: str | None, registry: Registry) -> NetworkConfig:
    source = f"etcd key {config_key(registry.prefix)}"
    if text is None:
        raise ConfigError(source, None, "a network config; write one with `flannel-ebpf config set`")
    return parse_network_config(text, source)


def _fits(subnet: IPv4Network, network: NetworkConfig) -> None:
    """Refuse a subnet that no node would take."""
    inside = network.subnet_min <= subnet.network_address <= network.subnet_max
    if not inside or subnet.prefixlen != network.subnet_len:
        raise ConfigError(
            "SUBNET",
            str(subnet),
            f"a /{network.subnet_len} from {network.subnet_min} to {network.subnet_max}",
        )
