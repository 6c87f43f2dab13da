"""What may lie where the daemon's report should be."""

from __future__ import annotations

import json
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.host import report
from tests.unit.commands.test_down import content

NETWORK = IPv4Network("10.1.0.0/16")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    report.write(tmp_path, content())
    assert report.read(tmp_path, NETWORK) == content()
    assert list(report.read_all(tmp_path)) == [(NETWORK, content())]


def test_an_older_versions_report_lacks_what_came_later(tmp_path: Path) -> None:
    later = {"etcd_prefix", "families", "handed_over", "lacks", "ready", "warnings", "etcd", "kube"}
    later |= {"options", "free", "guards"}
    report.write(tmp_path, {key: value for key, value in content().items() if key not in later})
    read = report.read(tmp_path, NETWORK)
    assert read
    assert read["etcd"]["endpoints"] == []
    kept = {key: read[key] for key in ("etcd", "kube", "options")}
    assert read == content(etcd_prefix="", ready=False, **kept)


def test_what_is_said_of_families_is_said_of_one_where_an_older_version_wrote(tmp_path: Path) -> None:
    ipv4 = {key: content()[key] for key in ("network", "overlay", "public_ip", "subnet")}
    ipv6 = {
        "network": "fc00::/48",
        "overlay": "flannel-v6.1",
        "public_ip": "fd00::1",
        "subnet": "fc00:0:0:7::/64",
    }
    report.write(tmp_path, content(families=[ipv4, ipv6]))
    read = report.read(tmp_path, NETWORK)
    assert read
    assert report.families(read) == [ipv4, ipv6]
    assert report.families(content()) == [ipv4]


WRONG: dict[str, Any] = {
    "network": "10.2.0.0/16",
    "pid": "1",
    "public_ip": "no address",
    "subnet": "10.1.5.1/24",
    "families": [{"network": "fc00::/48"}],
    "pods": True,
    "free": "none",
    "guards": [{"addresses": "10.1.5.2"}],
    "datapath": {},
    "peers": {"wanted": 1},
    "skipped": [1],
    "failures": "none",
    "backend": None,
}
RUBBISH = ("", "{", "{}", "[]", "5", "null", "[" * 100_000, '{"network": "rubbish"}')


@pytest.mark.parametrize("text", [*RUBBISH, *(json.dumps(content() | {key: WRONG[key]}) for key in WRONG)])
def test_rubbish_is_no_report(tmp_path: Path, text: str) -> None:
    report.path_of(tmp_path, NETWORK).write_text(text)
    assert report.read(tmp_path, NETWORK) is None
    assert list(report.read_all(tmp_path)) == [(NETWORK, None)]


def test_other_things_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    report.path_of(tmp_path, NETWORK).mkdir()
    (tmp_path / "somebody.status.json").write_text("{}")
    (tmp_path / "10.1.0.0-99.status.json").write_text("{}")
    assert list(report.read_all(tmp_path)) == [(NETWORK, None)]
