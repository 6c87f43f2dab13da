"""The test process in an empty network namespace of its own, as the tests of the kernel edges want it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from flannel_ebpf.kernel.network import KernelNetwork
from tests.namespaces import inside, new_namespace
from tests.netns.kernel.space import PUBLIC_IP, index_of, run


@pytest.fixture
def namespace() -> Iterator[None]:
    """Put the test into an empty network namespace, which goes when the test ends."""
    made = new_namespace()
    try:
        with inside(made):
            run("ip link set lo up")
            yield
    finally:
        os.close(made)


@pytest.fixture
def kernel(namespace: None) -> Iterator[KernelNetwork]:
    with KernelNetwork() as network:
        yield network


@pytest.fixture
def uplink(namespace: None) -> int:
    """Make `up0` with PUBLIC_IP/24 and a peer in the same namespace; return its ifindex."""
    run("ip link add up0 type veth peer up1")
    run("ip link set up0 up", "ip link set up1 up", f"ip address add {PUBLIC_IP}/24 dev up0")
    return index_of("up0")
