"""Labs and etcd servers for tests; always taken down."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from flannel_ebpf.lab import Lab, LabSpec
from tests.netns.etcd_cluster import EtcdCluster
from tests.netns.labs import MakeLab, new_name, remove_leftovers


def pytest_sessionstart() -> None:
    if os.geteuid() != 0:
        pytest.exit("tests/netns make network namespaces, which takes root: run them with sudo", returncode=1)


@pytest.hookimpl(trylast=True)  # parallel workers are gone by then
def pytest_sessionfinish() -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        remove_leftovers()


@pytest.fixture
def lab_name() -> str:
    """A name that no other lab on this machine has."""
    return new_name()


def _maker(config: pytest.Config) -> Generator[MakeLab, None, None]:
    made: list[Lab] = []
    usual = {"fastpath": config.getoption("--fastpath")}

    def make(**fields: Any) -> Lab:
        made.append(Lab.up(LabSpec(**{"name": new_name(), **usual, **fields})))
        return made[-1]

    yield make
    for lab in made:
        lab.down()


@pytest.fixture
def make_lab(pytestconfig: pytest.Config) -> Generator[MakeLab, None, None]:
    """`make_lab(**LabSpec fields)`: a lab for this test alone."""
    yield from _maker(pytestconfig)


@pytest.fixture(scope="module")
def make_shared_lab(pytestconfig: pytest.Config) -> Generator[MakeLab, None, None]:
    """Like `make_lab`, for a lab that all tests of one file share."""
    yield from _maker(pytestconfig)


@pytest.fixture(scope="module")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """One etcd server, which all tests of one file share."""
    with EtcdCluster(tmp_path_factory.mktemp("etcd")) as cluster:
        yield cluster


@pytest.fixture
def etcd(shared_etcd: EtcdCluster) -> EtcdCluster:
    """The file's etcd server, empty."""
    shared_etcd.ctl("del", "--prefix", "/")
    return shared_etcd
