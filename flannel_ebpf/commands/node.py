"""Commands about this node: run the daemon, take it down, look at it."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from flannel_ebpf.base.family import Network
from flannel_ebpf.commands.flags import (
    FlagCommand,
    Function,
    node_flags,
    options_from,
    unknown_variables,
    up_flags,
    without_effect,
)
from flannel_ebpf.commands.values import Subnet

if TYPE_CHECKING:
    from flannel_ebpf.commands.which import Asked

log = logging.getLogger(__name__)


@click.command(cls=FlagCommand, short_help="Run the daemon.")
@up_flags
def up(verbosity: int, **values: Any) -> int:
    """Run the daemon: take a subnet lease, set up the overlay and keep it right.

    Flags and their FLANNELD_* variables are flanneld's, and more of the same kind.
    """
    options = options_from(values)
    from flannel_ebpf.agent.daemon import run  # noqa: PLC0415 - only this command needs the daemon
    from flannel_ebpf.commands.logs import log_to_stderr  # noqa: PLC0415 - likewise

    log_to_stderr(verbosity, options.log_format)
    unknown = unknown_variables(click.get_current_context().command, os.environ)
    if unknown:
        log.warning("these variables are no flag's and are ignored: %s", ", ".join(unknown))
    for text in without_effect(options):
        log.warning("%s", text)
    return run(options)


def _network_flags(command: Function) -> Function:
    """Add what tells one network of several on this host from the others."""
    option = click.option(
        "--network",
        "networks",
        type=Subnet(),
        multiple=True,
        help="Only this network of several here; repeatable.",
    )
    return option(node_flags(command))


def _asked(networks: tuple[Network, ...]) -> Asked:
    from flannel_ebpf.commands.which import Asked  # noqa: PLC0415 - only some commands need it

    context = click.get_current_context()
    named = context.get_parameter_source("etcd_prefix") is ParameterSource.COMMANDLINE
    return Asked(networks, context.params["etcd_prefix"] if named else "")


@click.command(cls=FlagCommand, short_help="Detach the BPF programs; with --purge remove everything.")
@_network_flags
@click.option("--purge", is_flag=True, help="Remove the kernel path too: device, routes, rules, files.")
@click.option("--release", is_flag=True, help="Give the subnet back to etcd.")
@click.option("--force", is_flag=True, help="Purge even what flanneld may have taken over since.")
def down(networks: tuple[Network, ...], purge: bool, release: bool, force: bool, **values: Any) -> int:
    """Detach the BPF programs; the kernel path goes on unless --purge is given.

    Without --network or --etcd-prefix it is about every network of this host.
    """
    options = options_from(values)
    from flannel_ebpf.commands.down import down as tear_down  # noqa: PLC0415 - only this command needs it
    from flannel_ebpf.commands.logs import log_to_stderr  # noqa: PLC0415 - only some commands log

    log_to_stderr(0)
    return tear_down(options, _asked(networks), purge=purge, release=release, force=force)


@click.command(cls=FlagCommand, short_help="Show what this node's overlay is made of.")
@_network_flags
@click.option("--json", "as_json", is_flag=True, help="For programs rather than people.")
def status(networks: tuple[Network, ...], as_json: bool, **values: Any) -> int:
    """Show what this node's overlay is made of and how its packets travel."""
    options = options_from(values)
    from flannel_ebpf.commands.status import status as show  # noqa: PLC0415 - only this command needs it

    return show(options, _asked(networks), as_json=as_json)
