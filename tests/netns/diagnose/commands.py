"""Our commands, run on a node of the lab as an operator runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from flannel_ebpf.lab import Node


def ours(node: Node, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `flannel-ebpf ARGUMENTS` on a node, about that node."""
    variables = [f"{name}={value}" for name, value in node.variables.items()]
    command = ["env", *variables, sys.executable, "-m", "flannel_ebpf", *arguments]
    done = node.run(command, check=False, timeout=120)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def asked(node: Node, name: str, *arguments: str) -> Any:
    """Return what a command says with --json."""
    return json.loads(ours(node, name, "--json", *arguments).stdout)[name]
