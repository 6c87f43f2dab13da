"""Tests for virtual machines of `make kernels`: what one kernel alone cannot show."""

from __future__ import annotations

import pytest

from tests.bpf.conftest import built, compiled, request_
from tests.netns.conftest import make_lab, make_shared_lab

__all__ = ["built", "compiled", "make_lab", "make_shared_lab", "request_"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--objects", default="", help="folder with a folder of BPF objects for each compiler")
