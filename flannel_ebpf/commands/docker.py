"""`flannel-ebpf docker-opts`: flannel's mk-docker-opts.sh."""

from __future__ import annotations

import os
import re
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path
from typing import Any

import click

from flannel_ebpf.base.errors import ConfigError, FlannelError
from flannel_ebpf.base.family import Family
from flannel_ebpf.base.options import Options
from flannel_ebpf.host import docker_opts as made
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.netlink.routes import read_main_table

_PATH = click.Path(path_type=Path)


def _variable(_context: click.Context, _parameter: click.Parameter, name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        raise click.BadParameter(f"{name!r} is not the name of a variable such as DOCKER_OPTS.")
    return name


@click.command("docker-opts", short_help="Write Docker's daemon options from subnet.env.")
@click.option(
    "-f", "source", type=_PATH, default=Options().subnet_file, show_default=True, help="subnet.env."
)
@click.option("-d", "target", type=_PATH, default=Path("/run/docker_opts.env"), show_default=True,
              help="File to write for Docker's unit.")  # fmt: skip
@click.option("-i", "each", is_flag=True, help="Each option as a variable of its own.")
@click.option("-c", "combined", is_flag=True, help="All options in one variable. Without -i and -c: both.")
@click.option("-k", "key", default="DOCKER_OPTS", show_default=True, callback=_variable,
              help="Name of the variable with all options.")  # fmt: skip
@click.option("-m", "no_masq", is_flag=True, help="Leave --ip-masq out.")
@click.option("--allow-direct-routing", "direct_routing", is_flag=True,
              help="Let other hosts' packets in: Docker 28.2 and later.")  # fmt: skip
def docker_opts(source: Path, target: Path, key: str, **flags: Any) -> None:
    """Write Docker's daemon options from subnet.env, as flannel's mk-docker-opts.sh does."""
    values = made.read_values(source)
    found = made.options(values, ip_masq=not flags["no_masq"], direct_routing=flags["direct_routing"])
    both = not flags["each"] and not flags["combined"]
    text = made.render(
        found, os.environ, key=key, each=flags["each"] or both, combined=flags["combined"] or both
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
    except OSError as error:
        raise ConfigError("-d", str(target), f"a file that can be written ({error.strerror})") from error
    _check_routes(values.get("FLANNEL_SUBNET", ""))


def _check_routes(gateway: str) -> None:
    """Refuse a subnet that a route leads elsewhere: Docker could not have it."""
    if not gateway:
        return
    try:
        subnet = IPv4Interface(gateway).network
    except ValueError as error:
        raise ConfigError("FLANNEL_SUBNET", gateway, "an address such as 10.1.74.1/24") from error
    asked = (int(subnet.network_address), subnet.prefixlen)
    with RouteSocket() as netlink:
        found = next(
            (route for route in read_main_table(netlink, Family.V4) if route.dst == asked and route.gateway),
            None,
        )
    if found and found.gateway:
        raise FlannelError(f"the routing table has {subnet} via {IPv4Address(found.gateway)} already")
