"""What is remembered of a node's state before us."""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf import before
from flannel_ebpf.errors import ConfigError

NETWORK = IPv4Network("10.1.0.0/16")
OTHER = IPv4Network("10.2.0.0/16")


def test_the_oldest_value_counts(tmp_path: Path) -> None:
    state = tmp_path / "state"
    assert before.read(state, NETWORK) == before.Before()
    before.remember_sysctl(state, NETWORK, "a/b", "0")
    before.remember_sysctl(state, NETWORK, "a/b", "1")
    before.remember_sysctl(state, NETWORK, "a/c", "7")
    before.remember_routes(state, NETWORK, [IPv4Network("10.1.7.0/24")])
    before.remember_routes(state, NETWORK, [IPv4Network("10.1.5.0/24"), IPv4Network("10.1.7.0/24")])
    assert before.read(state, NETWORK) == before.Before(
        {"a/b": "0", "a/c": "7"}, ("10.1.5.0/24", "10.1.7.0/24")
    )
    assert before.read(state, OTHER) == before.Before()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"sysctls": 7, "routes": []}', '{"routes": []}'])
def test_a_broken_file_remembers_nothing(tmp_path: Path, text: str) -> None:
    before.path_of(tmp_path, NETWORK).write_text(text)
    assert before.read(tmp_path, NETWORK) == before.Before()
    before.remember_sysctl(tmp_path, NETWORK, "a/b", "0")
    assert before.read(tmp_path, NETWORK).sysctls == {"a/b": "0"}


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--state-dir"):
        before.remember_sysctl(tmp_path / "file", NETWORK, "a/b", "0")
