"""A real flanneld beside our daemon: `make interop` builds it and runs these tests."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.netns.conftest import etcd, lab_name, make_lab, make_shared_lab, shared_etcd

__all__ = ["etcd", "lab_name", "make_lab", "make_shared_lab", "shared_etcd"]

BUILD = Path(__file__).parents[2] / "tools" / "flannel.sh"


@pytest.fixture(scope="session")
def flanneld() -> Path:
    """Return the program, built from flannel's source the first time."""
    folder = subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    return Path(folder) / "flanneld"
