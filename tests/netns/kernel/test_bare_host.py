"""A host without any address: tables that are not there yet are empty, and the daemon says what it lacks."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Family
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.seen import Seen
from flannel_ebpf.kernel.uplink import find_uplinks
from tests.namespaces import inside, new_namespace


@pytest.fixture
def seen() -> Iterator[Seen]:
    """Look at a new namespace, whose lo is down: the kernel has not made a main table."""
    made = new_namespace()
    try:
        with inside(made), RouteSocket() as netlink:
            yield Seen(netlink)
    finally:
        os.close(made)


@pytest.mark.parametrize("family", Family)
def test_no_table_is_an_empty_one(seen: Seen, family: Family) -> None:
    assert list(seen.routes(family)) == []
    assert list(seen.addresses(family)) == []


def test_an_uplink_is_missed_in_one_line(seen: Seen) -> None:
    with pytest.raises(ConfigError, match="default route") as caught:
        find_uplinks(seen)
    assert "\n" not in str(caught.value)
