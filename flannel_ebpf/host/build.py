"""Which commit this program was built of."""

from __future__ import annotations

import subprocess
from pathlib import Path

PROGRAMS = Path(__file__).parents[1] / "_programs"
"""Folder of what is built: the BPF objects, and in a package a note of the commit."""


def commit() -> str:
    """Return the commit that a package was built of or that a checkout is at; "" when nothing tells."""
    top = PROGRAMS.parents[1]
    if not (top / ".git").exists():
        noted = PROGRAMS / "commit"
        return noted.read_text() if noted.exists() else ""
    asked = ["git", "-C", str(top), "describe", "--always", "--exclude=*", "--abbrev=12", "--dirty=+"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
