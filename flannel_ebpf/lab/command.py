"""Run one outside command to its end, with failures as LabError."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence

from flannel_ebpf.base.errors import LabError


def run(
    command: Sequence[str], *, check: bool = True, stdin: str | None = None, timeout: float = 60.0
) -> subprocess.CompletedProcess[str]:
    """Run `command` (no shell) and return it with its text output.

    Raises LabError when the program is missing, takes longer than `timeout` seconds, or, with `check`,
    ends with another status than 0; the text holds the end of what it wrote to standard error.
    """
    line = shlex.join(command)
    try:
        done = subprocess.run(
            list(command), input=stdin, capture_output=True, text=True, timeout=timeout, check=False
        )
    except FileNotFoundError as error:
        raise LabError(f"{command[0]} is not installed; `make setup` installs what the lab needs") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"`{line}` did not end within {timeout:g} s") from error
    if check and done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-500:]
        raise LabError(f"`{line}` ended with status {done.returncode}: {said}")
    return done
