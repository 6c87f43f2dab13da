"""Labs of tests: what makes them, and names that no other lab on this machine has."""

from __future__ import annotations

import os
from itertools import count
from typing import Any, Protocol

from flannel_ebpf.lab import Lab, netns, teardown
from flannel_ebpf.lab.cluster import labs

RUN = f"t{os.environ.setdefault('FLANNEL_TEST_RUN', str(os.getpid()))}"
"""What the names of all labs of this test run begin with; its parallel workers inherit it."""

_numbers = count(1)


class MakeLab(Protocol):
    """Build a lab of these `LabSpec` fields; it is taken down when the test, or the file, is over."""

    def __call__(self, **fields: Any) -> Lab: ...


def new_name() -> str:
    """Return a name that no other lab has: of this run, this worker of it, this call."""
    return f"{RUN}{os.environ.get('PYTEST_XDIST_WORKER', '')}-{next(_numbers)}"


def remove_leftovers() -> None:
    """Remove what an interrupt at a bad moment left of this run's labs, whichever worker built them."""
    namespaces = {ns.rpartition("-")[0] for ns in netns.names()}
    for name in {*labs(), *namespaces}:
        if name.startswith((f"{RUN}-", f"{RUN}gw")):
            teardown.remove(name)
