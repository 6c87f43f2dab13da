"""Commands about this node: run the daemon, take it down, look at it."""

from __future__ import annotations

import logging
import os
from typing import Any

import click

from flannel_ebpf.commands.flags import FlagCommand, node_flags, options_from, unknown_variables, up_flags

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

    log_to_stderr(verbosity)
    unknown = unknown_variables(click.get_current_context().command, os.environ)
    if unknown:
        log.warning("these variables are no flag's and are ignored: %s", ", ".join(unknown))
    return run(options)


@click.command(cls=FlagCommand, short_help="Detach the BPF programs; with --purge remove everything.")
@node_flags
@click.option("--purge", is_flag=True, help="Remove the kernel path too: device, routes, rules, files.")
@click.option("--release", is_flag=True, help="Give the subnet back to etcd.")
def down(purge: bool, release: bool, **values: Any) -> int:
    """Detach the BPF programs; the kernel path goes on unless --purge is given."""
    options = options_from(values)
    from flannel_ebpf.commands.down import down as tear_down  # noqa: PLC0415 - only this command needs it
    from flannel_ebpf.commands.logs import log_to_stderr  # noqa: PLC0415 - only some commands log

    log_to_stderr(0)
    return tear_down(options, purge=purge, release=release)


@click.command(cls=FlagCommand, short_help="Show what this node's overlay is made of.")
@node_flags
@click.option("--json", "as_json", is_flag=True, help="For programs rather than people.")
def status(as_json: bool, **values: Any) -> int:
    """Show what this node's overlay is made of and how its packets travel."""
    options = options_from(values)
    from flannel_ebpf.commands.status import status as show  # noqa: PLC0415 - only this command needs it

    return show(options, as_json=as_json)
