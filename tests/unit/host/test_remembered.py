"""What is remembered of a node's state before us."""

from __future__ import annotations

from ipaddress import IPv4Network, ip_network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.host import remembered

NETWORK = IPv4Network("10.1.0.0/16")
OTHER = IPv4Network("10.2.0.0/16")


def test_the_oldest_value_counts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert remembered.read(state, NETWORK) == remembered.Before()
    remembered.remember_sysctl(state, NETWORK, "net/b", "0")
    remembered.remember_sysctl(state, NETWORK, "net/b", "1")
    remembered.remember_sysctl(state, NETWORK, "net/c", "7")
    remembered.remember_routes(state, NETWORK, [IPv4Network("10.1.7.0/24")])
    remembered.remember_routes(state, NETWORK, [IPv4Network("10.1.5.0/24"), IPv4Network("10.1.7.0/24")])
    assert remembered.read(state, NETWORK) == remembered.Before(
        {"net/b": "0", "net/c": "7"}, (IPv4Network("10.1.5.0/24"), IPv4Network("10.1.7.0/24"))
    )
    assert remembered.read(state, OTHER) == remembered.Before()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "[" * 100_000,
        '{"sysctls": 7, "routes": []}',
        '{"routes": []}',
        '{"sysctls": {}, "routes": ["elsewhere"]}',
        '{"sysctls": {}, "routes": 5}',
        '{"sysctls": {"../../etc/x": "x", "net/../../x": "y", "net/b": 7, "fs/x": "1"}, "routes": []}',
    ],
)
def test_a_broken_file_remembers_nothing(tmp_path: Path, text: str) -> None:
    remembered.path_of(tmp_path, NETWORK).write_text(text)
    assert remembered.read(tmp_path, NETWORK) == remembered.Before()
    remembered.remember_sysctl(tmp_path, NETWORK, "net/b", "0")
    assert remembered.read(tmp_path, NETWORK).sysctls == {"net/b": "0"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        remembered.remember_sysctl(tmp_path / "file", NETWORK, "net/b", "0")


def test_what_was_given_back_is_forgotten(tmp_path: Path) -> None:
    remembered.remember_sysctl(tmp_path, NETWORK, "net/b", "0")
    remembered.remember_routes(tmp_path, NETWORK, [IPv4Network("10.1.7.0/24")])
    remembered.forget_sysctls(tmp_path, NETWORK)
    assert remembered.read(tmp_path, NETWORK) == remembered.Before({}, (IPv4Network("10.1.7.0/24"),))


def test_a_folder_in_its_place_remembers_nothing(tmp_path: Path) -> None:
    remembered.path_of(tmp_path, NETWORK).mkdir()
    assert remembered.read(tmp_path, NETWORK) == remembered.Before()


def test_routes_of_both_families_are_remembered(tmp_path: Path) -> None:
    routes = [ip_network("fd10:1:0:7::/64"), ip_network("10.1.7.0/24")]
    remembered.remember_routes(tmp_path, NETWORK, routes)
    assert remembered.read(tmp_path, NETWORK).routes == (routes[1], routes[0])
