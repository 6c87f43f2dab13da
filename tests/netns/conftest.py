"""Labs for tests, uniquely named, so that several test runs share a machine, and etcd; always taken down."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from itertools import count
from typing import Any

import pytest
from etcd_cluster import EtcdCluster

from flannel_ebpf.lab import Lab, LabSpec, netns, teardown
from flannel_ebpf.lab.cluster import labs

pytest.register_assert_rewrite("traffic", "paths", "kinds")

PREFIX = f"t{os.getpid()}-"
_numbers = count(1)

MakeLab = Callable[..., Lab]


def pytest_sessionstart() -> None:
    if os.geteuid() != 0:
        pytest.exit("tests/netns make network namespaces, which takes root: run them with sudo", returncode=1)


def pytest_sessionfinish() -> None:
    """Remove what an interrupt at a bad moment left of this run's labs."""
    namespaces = {ns.rpartition("-")[0] for ns in netns.names()}
    for name in {*labs(), *namespaces}:
        if name.startswith(PREFIX):
            teardown.remove(name)


@pytest.fixture
def lab_name() -> str:
    """A name that no other lab on this machine has."""
    return f"{PREFIX}{next(_numbers)}"


def _maker() -> Generator[MakeLab, None, None]:
    made: list[Lab] = []

    def make(**spec: Any) -> Lab:
        made.append(Lab.up(LabSpec(**{"name": f"{PREFIX}{next(_numbers)}", **spec})))
        return made[-1]

    yield make
    for lab in made:
        lab.down()


@pytest.fixture
def make_lab() -> Generator[MakeLab, None, None]:
    """`make_lab(**LabSpec fields)`: a lab for this test alone."""
    yield from _maker()


@pytest.fixture(scope="module")
def make_shared_lab() -> Generator[MakeLab, None, None]:
    """Like `make_lab`, for a lab that all tests of one file share."""
    yield from _maker()


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
