"""The `flannel-ebpf` command: which commands there are, and how errors reach the operator."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import click

from flannel_ebpf.base.errors import FlannelError
from flannel_ebpf.commands.flags import print_version

PROGRAM = "flannel-ebpf"
FAILED, INTERRUPTED = 1, 130
"""Exit statuses besides 0 and 2, click's for a command line that cannot be used; 3 is "no daemon runs"."""

COMMANDS = {
    "up": "flannel_ebpf.commands.node:up",
    "down": "flannel_ebpf.commands.node:down",
    "status": "flannel_ebpf.commands.node:status",
    "doctor": "flannel_ebpf.commands.diagnose.doctor:doctor",
    "probe": "flannel_ebpf.commands.diagnose.probe:probe",
    "peers": "flannel_ebpf.commands.diagnose.tables:peers",
    "pods": "flannel_ebpf.commands.diagnose.tables:pods",
    "flows": "flannel_ebpf.commands.diagnose.tables:flows",
    "leases": "flannel_ebpf.commands.diagnose.tables:leases",
    "maps": "flannel_ebpf.commands.diagnose.tables:maps",
    "top": "flannel_ebpf.commands.diagnose.top:top",
    "monitor": "flannel_ebpf.commands.diagnose.monitor:monitor",
    "dump": "flannel_ebpf.commands.diagnose.dump:dump",
    "config": "flannel_ebpf.commands.network:config",
    "reserve": "flannel_ebpf.commands.network:reserve",
    "unreserve": "flannel_ebpf.commands.network:unreserve",
    "docker-opts": "flannel_ebpf.commands.docker:docker_opts",
    "version": "flannel_ebpf.commands.version:version",
    "lab": "flannel_ebpf.lab.cli:lab",
}
"""Command -> where it is defined. Imported when used, so that the daemon does not carry the lab."""

_HELP = ("-h", "--help", "-help")
_VERSION = ("--version", "-version")


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

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest."""
        if args and args[0] not in self.list_commands(ctx):
            near = difflib.get_close_matches(args[0], self.list_commands(ctx), 1)
            hint = f"did you mean {near[0]!r}?" if near else f"`{PROGRAM} --help` lists them."
            raise click.UsageError(f"there is no command {args[0]!r}: {hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": _HELP})
@click.option(
    *_VERSION, is_flag=True, is_eager=True, expose_value=False, callback=print_version,
    help="Print the version to stderr.",
)  # fmt: skip
def cli() -> None:
    """flannel's overlay network, carried by BPF programs."""  # noqa: D403 - flannel is a name


@cli.command("help")
@click.argument("command", nargs=-1)
@click.pass_context
def show_help(ctx: click.Context, command: tuple[str, ...]) -> None:
    """Show the help of a COMMAND, or of all."""
    cli.main([*command, "--help"], PROGRAM, standalone_mode=False, parent=ctx.parent)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status.

    What can go wrong on purpose ends here as one line on stderr: status 2 for a command line that cannot be
    used, 1 for everything else, as with flanneld.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        result = cli.main(as_flanneld(given, Path(sys.argv[0]).name), PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        return _fail(error, error.exit_code)
    except FlannelError as error:
        return _fail(error, FAILED)
    except click.Abort:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return result if isinstance(result, int) else 0


def as_flanneld(arguments: list[str], program: str) -> list[str]:
    """Return `arguments` with the command that flanneld has not: flags alone mean `up`.

    So a unit file needs another program's name only; called `flanneld`, flags may even be missing.
    """
    bare = arguments[:1] and arguments[0].startswith("-") and arguments[0] not in _HELP + _VERSION
    return ["up", *arguments] if bare or (program == "flanneld" and not arguments) else arguments


def _fail(error: click.ClickException | FlannelError, status: int) -> int:
    """Print the error in one line; of a group without a command, its help."""
    text = error.format_message() if isinstance(error, click.ClickException) else str(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(text, err=True)
    else:
        click.echo(f"{PROGRAM}: {' '.join(text.split())}", err=True)
    return status
