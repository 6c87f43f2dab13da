"""A lab with an API server for the tests of one file: the double, or with --kube-apiserver the real one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flannel_ebpf.lab import Lab
from tests.netns.labs import MakeLab

DOUBLE = Path(__file__).with_name("double.py")


@pytest.fixture(scope="session")
def kube_apiserver(request: pytest.FixtureRequest) -> str:
    """The program that answers: `make kube` names the real one."""
    return str(request.config.getoption("--kube-apiserver") or DOUBLE)


@pytest.fixture(scope="session")
def is_double(kube_apiserver: str) -> bool:
    return kube_apiserver == str(DOUBLE)


@pytest.fixture(scope="module")
def shared_kube_lab(make_shared_lab: MakeLab, kube_apiserver: str) -> Lab:
    """Two nodes without daemons, and an API server that has them as n1 and n2."""
    return make_shared_lab(nodes=2, start_daemons=False, kube_apiserver=kube_apiserver)


@pytest.fixture
def kube_lab(shared_kube_lab: Lab) -> Iterator[Lab]:
    """The file's lab; what a test made of nodes beside n1 and n2 is removed."""
    kube = shared_kube_lab.kube
    yield shared_kube_lab
    if kube.process is None:
        kube.start()
    for node in kube.request("GET", "/api/v1/nodes")["items"]:
        if node["metadata"]["name"] not in ("n1", "n2"):
            kube.request("DELETE", f"/api/v1/nodes/{node['metadata']['name']}")
