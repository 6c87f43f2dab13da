"""What is remembered of a node's state before us."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.host import remembered

NETWORK = IPv4Network("10.1.0.0/16")
OTHER = IPv4Network("10.2.0.0/16")


def test_the_oldest_value_counts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert remembered.read(state, NETWORK) == remembered.Before()
    remembered.remember_sysctl(state, NETWORK, "a/b", "0")
    remembered.remember_sysctl(state, NETWORK, "a/b", "1")
    remembered.remember_sysctl(state, NETWORK, "a/c", "7")
    remembered.remember_routes(state, NETWORK, [IPv4Network("10.1.7.0/24")])
    remembered.remember_routes(state, NETWORK, [IPv4Network("10.1.5.0/24"), IPv4Network("10.1.7.0/24")])
    assert remembered.read(state, NETWORK) == remembered.Before(
        {"a/b": "0", "a/c": "7"}, ("10.1.5.0/24", "10.1.7.0/24")
    )
    assert remembered.read(state, OTHER) == remembered.Before()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sysctls": 7, "routes": []}', '{"routes": []}'])
def test_a_broken_file_remembers_nothing(tmp_path: Path, text: str) -> None:
    remembered.path_of(tmp_path, NETWORK).write_text(text)
    assert remembered.read(tmp_path, NETWORK) == remembered.Before()
    remembered.remember_sysctl(tmp_path, NETWORK, "a/b", "0")
    assert remembered.read(tmp_path, NETWORK).sysctls == {"a/b": "0"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        remembered.remember_sysctl(tmp_path / "file", NETWORK, "a/b", "0")
