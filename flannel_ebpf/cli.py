"""The `flannel-ebpf` command: which commands there are, and how errors reach the operator."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module, metadata

import click

from flannel_ebpf.base.errors import FlannelError

PROGRAM = "flannel-ebpf"

COMMANDS = {
    "up": "flannel_ebpf.commands.node:up",
    "down": "flannel_ebpf.commands.node:down",
    "status": "flannel_ebpf.commands.node:status",
    "config": "flannel_ebpf.commands.network:config",
    "reserve": "flannel_ebpf.commands.network:reserve",
    "unreserve": "flannel_ebpf.commands.network:unreserve",
    "lab": "flannel_ebpf.lab.cli:lab",
}
"""Command -> where it is defined. Imported when used, so that the daemon does not carry the lab."""


class LazyGroup(click.Group):
    """A group whose commands live in other modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all commands in the order in which an operator meets them."""
        return [*COMMANDS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of a command and return it, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name].partition(":")
        command = getattr(import_module(module), name)
        return command if isinstance(command, click.Command) else None


def _print_version(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(metadata.version(PROGRAM), err=True)  # flanneld prints it to stderr
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help", "-help"]})
@click.option(
    "--version", "-version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version,
    help="Print the version to stderr.",
)  # fmt: skip
def cli() -> None:
    """flannel's overlay network, carried by BPF programs."""  # noqa: D403 - flannel is a name


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(metadata.version(PROGRAM))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    Everything that can go wrong on purpose ends here as one line on stderr and status 1, as with flanneld.
    """
    try:
        result = cli.main(arguments, PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        return _fail(error.format_message())
    except FlannelError as error:
        return _fail(str(error))
    except click.Abort:  # Ctrl-C
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return result if isinstance(result, int) else 0


def _fail(message: str) -> int:
    click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
    return 1
