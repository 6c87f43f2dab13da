"""Labs with the real API server, kube-proxy and flanneld, which `make kube` builds."""

from __future__ import annotations

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from tests.interop.conftest import flanneld
from tests.netns.conftest import _maker, make_lab
from tests.netns.labs import MakeLab

__all__ = ["flanneld", "make_lab"]

BUILD = Path(__file__).parents[2] / "tools" / "kube" / "build.sh"


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of kube-apiserver and kube-proxy, built the first time."""
    return Path(subprocess.run([BUILD], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


@pytest.fixture(scope="module")
def make_kube_lab(programs: Path, pytestconfig: pytest.Config) -> Generator[MakeLab, None, None]:
    """`make_kube_lab(**LabSpec fields)`: a lab with the real API server, for the tests of one file."""
    maker = _maker(pytestconfig)
    make = next(maker)
    yield lambda **fields: make(**{"kube_apiserver": str(programs / "kube-apiserver"), **fields})
    next(maker, None)
