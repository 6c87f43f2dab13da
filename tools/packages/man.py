"""Write the man pages, one per command, from what `--help` says; and the completion for bash and zsh.

Usage: python tools/packages/man.py FOLDER
"""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import click
from click.shell_completion import get_completion_class
from click_man.core import write_man_pages

from flannel_ebpf.cli import PROGRAM, cli

VARIABLE = "_FLANNEL_EBPF_COMPLETE"
"""Click's name for it: the program, in capitals."""


def main() -> None:
    """Write them into the folder that the first argument names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    context = click.Context(cli)
    # click-man looks into a group's table, which a lazy one does not fill.
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    whole = click.Group(PROGRAM, {name: one for name, one in found.items() if one}, help=cli.help)
    whole.params = cli.params
    write_man_pages(PROGRAM, whole, version=metadata.version(PROGRAM), target_dir=str(folder))
    for shell in ("bash", "zsh"):
        kind = get_completion_class(shell)
        if kind:
            (folder / f"completion.{shell}").write_text(kind(cli, {}, PROGRAM, VARIABLE).source())


main()
