from __future__ import annotations

import stat
from dataclasses import replace
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Network
from flannel_ebpf.host.subnet_env import Previous, SubnetEnv, read, render, update, write

NETWORK, SUBNET = IPv4Network("10.1.0.0/16"), IPv4Network("10.1.74.0/24")
NETWORK6 = IPv6Network("fc00::/48")
ENV = SubnetEnv((NETWORK,), (SUBNET,), 1450, False)
TEXT = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=false\n"


def test_the_file_is_byte_for_byte_what_flanneld_writes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "flannel" / "subnet.env"
    write(path, ENV)
    assert path.read_text() == TEXT
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755
    assert read(path) == Previous((NETWORK,), (SUBNET,))


def test_masquerading_is_told() -> None:
    assert render(replace(ENV, mtu=1472, ip_masq=True)).endswith("FLANNEL_MTU=1472\nFLANNEL_IPMASQ=true\n")


def test_an_old_file_is_replaced_by_a_new_one_and_nothing_is_left_over(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    path.write_text("x" * 1000)
    with path.open() as held_open:
        write(path, ENV)
        assert held_open.read() == "x" * 1000  # a reader of the old file never sees half of the new one
    assert [entry.name for entry in tmp_path.iterdir()] == ["subnet.env"]


def test_a_place_that_cannot_be_written_is_named_and_nothing_is_left_over(tmp_path: Path) -> None:
    (tmp_path / "subnet.env").mkdir()
    with pytest.raises(ConfigError, match=r"--subnet-file: .*subnet\.env.*Is a directory"):
        write(tmp_path / "subnet.env", ENV)
    assert [entry.name for entry in tmp_path.iterdir()] == ["subnet.env"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="--subnet-file"):
        write(tmp_path / "file" / "subnet.env", ENV)


def test_update_touches_the_file_only_when_it_says_something_else(tmp_path: Path) -> None:
    path = tmp_path / "subnet.env"
    update(path, ENV)
    before = path.stat().st_ino
    update(path, ENV)
    assert path.stat().st_ino == before
    for other in (TEXT.replace("1450", "1400").encode(), b"\xff"):
        path.write_bytes(other)
        update(path, ENV)
        assert path.read_text() == TEXT


@pytest.mark.parametrize(
    "line",
    [
        "FLANNEL_SUBNET=10.1.74.1/24",
        'FLANNEL_SUBNET="10.1.74.1/24"',
        "FLANNEL_SUBNET='10.1.74.1/24' # ours",
        "export FLANNEL_SUBNET=10.1.74.1/24",
        "  FLANNEL_SUBNET = 10.1.74.1/24   # ours",
        "FLANNEL_SUBNET: 10.1.74.1/24",
        "# a comment\n\nnot an assignment\nFLANNEL_SUBNET=10.1.74.1/24\r\n",
        "FLANNEL_SUBNET=10.1.1.1/24\nFLANNEL_SUBNET=10.1.74.0/24",
    ],
)
def test_what_people_make_of_the_file_is_understood(tmp_path: Path, line: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_text(line)
    assert read(path) == Previous((), (SUBNET,))


def test_a_missing_or_silent_file_says_nothing(tmp_path: Path) -> None:
    assert read(tmp_path / "subnet.env") == Previous()
    (tmp_path / "subnet.env").write_text("FLANNEL_SUBNET=\nFLANNEL_MTU=1450\n")
    assert read(tmp_path / "subnet.env") == Previous()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"FLANNEL_SUBNET=10.1.74.1", "10.1.74.1"),
        (b"FLANNEL_SUBNET=10.1.74.1/33", "/33"),
        (b'FLANNEL_SUBNET="10.1.74.1/24', "10.1.74.1/24"),
        (b"FLANNEL_SUBNET=fd00::1/64", "fd00::1/64"),
        (b"FLANNEL_NETWORK=10.1.0.0/16,10.2.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24", "FLANNEL_NETWORK"),
        (b"\xff\xfe\x00", "utf-8"),
    ],
)
def test_a_bad_file_is_ignored_with_a_warning(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "subnet.env"
    path.write_bytes(content)
    previous = read(path)
    assert (previous.networks, previous.subnets) == ((), ())
    assert str(path) in previous.warning
    assert reason in previous.warning


def test_a_folder_in_its_place_is_ignored_with_a_warning(tmp_path: Path) -> None:
    assert "Is a directory" in read(tmp_path).warning


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(68, 65535), st.booleans())
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, address: int, length: int, mtu: int, masq: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "subnet.env"
    subnet = IPv4Network((address, length), strict=False)
    write(path, SubnetEnv((subnet,), (subnet,), mtu, masq))
    assert read(path) == Previous((subnet,), (subnet,))


@pytest.mark.parametrize("networks", [(NETWORK, NETWORK6), (NETWORK6,)], ids=["dual stack", "IPv6 alone"])
def test_both_families_are_written_in_flanneld_s_order(tmp_path: Path, networks: tuple[Network, ...]) -> None:
    path = tmp_path / "subnet.env"
    subnets = (SUBNET, IPv6Network("fc00:0:0:74::/64"))[-len(networks) :]
    write(path, SubnetEnv(networks, subnets, 1430, False))
    ipv4, rest = TEXT.replace("1450", "1430").split("FLANNEL_MTU")
    ipv6 = "FLANNEL_IPV6_NETWORK=fc00::/48\nFLANNEL_IPV6_SUBNET=fc00:0:0:74::1/64\n"
    assert path.read_text() == f"{ipv4 if len(networks) == 2 else ''}{ipv6}FLANNEL_MTU{rest}"
    assert read(path) == Previous(networks, subnets)
