"""How these commands speak: tables of 80 columns, colour on a terminal only, JSON for programs."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

FORMAT = 1
"""Version of the JSON: keys are added under the same one, never renamed or removed."""

NOT_RUNNING = 3
"""Exit status where there is no daemon to ask, or none has run."""

WIDTH = 80

Row = Mapping[str, Any]

_PIPED = 200  # columns of what is not a terminal: lines stay whole for grep and awk

json_flag = click.option("--json", "as_json", is_flag=True, help="For programs rather than people.")


class NothingHereError(click.ClickException):
    """There is no network on this node that a command could be about."""

    exit_code = NOT_RUNNING


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table: its title, and how a row's text is made."""

    title: str
    text: Callable[[Row], str | Text]
    right: bool = False


def console() -> Console:
    """Return the console of standard output: coloured on a terminal, plain and wide elsewhere."""
    terminal = sys.stdout.isatty()
    return Console(file=sys.stdout, highlight=False, width=None if terminal else _PIPED, soft_wrap=True)


def table(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """Return the rows as a table without lines."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column.title, justify="right" if column.right else "left", no_wrap=True)
    for row in rows:
        cells = (column.text(row) for column in columns)
        # [fd00::1]:80 is no markup
        made.add_row(*(escape(cell) if isinstance(cell, str) else cell for cell in cells))
    return made


def print_json(kind: str, content: Any) -> None:
    """Print one JSON object: {"version": 1, kind: content}."""
    click.echo(json.dumps({"version": FORMAT, kind: content}, indent=2, default=str))


def wrapped(text: str, first: str = "", rest: str = "    ") -> list[str]:
    """Return prose in lines of 80 columns; what has no blank in it, such as an address, stays whole."""
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first]


def print_line(content: Any) -> None:
    """Print one JSON object on a line of its own, at once: for what has no end."""
    click.echo(json.dumps({"version": FORMAT, **content}))


def short(number: float, unit: str = "") -> str:
    """Return a number of at most four digits with a decimal prefix: 12.3k, 1.20G."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(number) < 1000 or prefix == "T":
            break
        number /= 1000
    digits = 0 if not prefix and float(number).is_integer() else 2 if abs(number) < 10 else 1
    return f"{number:.{digits}f}{prefix}{unit}"


def age(seconds: float) -> str:
    """Return a time in one or two units: 0.4s, 12s, 3m04s, 2h10m, 5d03h."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f}s"
    whole = int(seconds)
    for size, big, small, step in ((60, "s", "", 1), (3600, "m", "s", 60), (86_400, "h", "m", 3600)):
        if whole < size:
            rest = f"{whole % step * 60 // step:02d}{small}" if small else ""
            return f"{whole // step}{big}{rest}"
    return f"{whole // 86_400}d{whole % 86_400 // 3600:02d}h"
