"""Runs the tools that read and write firewall rules."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence

from flannel_ebpf.base.errors import KernelError

_TIMEOUT = 30.0


def run(command: Sequence[str], text: str = "") -> str:
    """Run a tool to its end and return its output, whose bytes need not be UTF-8: comments may hold anything.

    Raises KernelError with the tool's own words.
    """
    try:
        done = subprocess.run(
            command,
            input=text.encode(errors="surrogateescape"),
            capture_output=True,
            timeout=_TIMEOUT,
            check=True,
            env={**os.environ, "LC_ALL": "C"},
        )
    except FileNotFoundError as error:
        raise KernelError(f"{command[0]} is not installed: firewall rules need it") from error
    except OSError as error:
        raise KernelError(f"{command[0]} cannot be run: {error.strerror}", error.errno or 0) from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{command[0]} did not end within {_TIMEOUT:.0f} s") from error
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.decode(errors="replace").split()) or f"status {error.returncode}"
        raise KernelError(f"{' '.join(command)}: {said}") from error
    return done.stdout.decode(errors="surrogateescape")
