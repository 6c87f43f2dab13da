from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Any

import pytest

import flannel_ebpf.leases.etcd
import flannel_ebpf.leases.snapshot
from flannel_ebpf.base.errors import EtcdUnavailable
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.model import Claim, Endpoint, Lease, Skipped
from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.cli import main
from tests.samples import lease

GOOD = '{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}'
SUBNET, NODE = IPv4Network("10.1.5.0/24"), IPv4Address("192.0.2.1")

Run = Callable[..., tuple[int, str, str]]


class Etcd:
    """Keys of one network in memory, behind the names of the real client and registry."""

    def __init__(self) -> None:
        self.config: str | None = GOOD
        self.leases: dict[Network, Lease] = {}
        self.options: EtcdOptions | None = None
        self.open = 0
        self.down = False
        self.rubbish = "/coreos.com/network/subnets/junk"

    def client(self, options: EtcdOptions) -> Etcd:
        self.options = options
        self.open += 1
        return self

    def close(self) -> None:
        self.open -= 1

    def registry(self, client: Etcd, prefix: str) -> Etcd:
        assert client is self
        self.prefix = prefix
        return self

    def network_config(self) -> str | None:
        if self.down:
            raise EtcdUnavailable("no etcd endpoint answers: 127.0.0.1:2379: connection refused")
        return self.config

    def set_network_config(self, text: str) -> None:
        self.config = text

    def replace_network_config(self, before: str, text: str) -> None:
        assert self.config == before
        self.config = text

    def snapshot(self) -> Any:
        skipped = (Skipped(self.rubbish, "no subnet"),)
        return flannel_ebpf.leases.snapshot.Snapshot(7, 1, tuple(self.leases.values()), skipped)

    def create_alone(self, lease: Lease, ttl: int, before: Any) -> None:
        assert lease.subnets[0] not in self.leases
        self.leases[lease.subnets[0]] = replace(lease, etcd_lease=ttl)

    def rewrite(self, lease: Lease, ttl: int) -> None:
        assert self.leases[lease.subnets[0]] == lease
        self.leases[lease.subnets[0]] = replace(lease, etcd_lease=ttl)

    def delete(self, lease: Lease) -> None:
        del self.leases[lease.subnets[0]]


@pytest.fixture
def etcd(monkeypatch: pytest.MonkeyPatch) -> Etcd:
    fake = Etcd()
    monkeypatch.setattr(flannel_ebpf.leases.etcd, "EtcdClient", fake.client)
    monkeypatch.setattr(flannel_ebpf.leases.etcd, "Registry", fake.registry)
    return fake


@pytest.fixture
def run(etcd: Etcd, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: str) -> tuple[int, str, str]:
        status = main(arguments)
        assert etcd.open == 0, "the client was left open"
        out, err = capfd.readouterr()
        errors = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert len(errors) == (status != 0)
        return status, out, err

    return call


def test_get_prints_the_config_as_it_stands(run: Run) -> None:
    assert run("config", "get") == (0, f"{GOOD}\n", "")


def test_get_says_that_there_is_none(run: Run, etcd: Etcd) -> None:
    etcd.config = None
    status, out, err = run("config", "get", "--etcd-prefix=/net/a")
    assert (status, out) == (1, "")
    assert "/net/a/config" in err
    assert "config set" in err


def test_get_prints_a_bad_config_and_what_is_wrong(run: Run, etcd: Etcd) -> None:
    etcd.config = '{"Network": "10.1.0.0/30"}'
    status, out, err = run("config", "get")
    assert (status, out) == (1, etcd.config + "\n")
    assert "10.1.0.0/30" in err


def test_set_writes_a_good_config_as_given(run: Run, etcd: Etcd) -> None:
    text = ' {"Network":"10.2.0.0/16", "Comment":"kept", "Backend": {"type": "vxlan", "Bar": 3}}\n'
    status, out, err = run("config", "set", text)
    assert status == 0
    assert out.endswith("/config: network 10.2.0.0/16 in /24, backend vxlan\n")
    assert [line.split()[2] for line in err.splitlines()] == ["Comment", "Backend.Bar"]
    assert etcd.config == text.strip()


def test_set_reads_standard_input(run: Run, etcd: Etcd, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"Network":"10.3.0.0/16"}')))
    assert run("config", "set", "-")[0] == 0
    assert etcd.config == '{"Network":"10.3.0.0/16"}'


def test_diff_shows_what_would_change_whatever_the_spacing(run: Run, etcd: Etcd) -> None:
    assert run("config", "diff", GOOD.replace(" ", "")) == (0, "", "")
    assert main(["config", "diff", GOOD.replace("vxlan", "host-gw")]) == 1
    etcd.config = None
    assert main(["config", "diff", GOOD]) == 1


def test_diff_is_one_of_lines(etcd: Etcd, capfd: pytest.CaptureFixture[str]) -> None:
    main(["config", "diff", GOOD.replace("vxlan", "host-gw")])
    lines = capfd.readouterr().out.splitlines()
    assert lines[:2] == ["--- /coreos.com/network/config", "+++ given"]
    assert lines[-4:-2] == ['-    "Type": "vxlan"', '+    "Type": "host-gw"']


def editor(tmp_path: Path, command: str) -> str:
    path = tmp_path / "editor"
    path.write_text(f"#!/bin/sh\n{command}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("command", "status", "says", "kept"),
    [
        ('sed -i s/vxlan/host-gw/ "$1"', 0, "network 10.1.0.0/16 in /24, backend host-gw", "host-gw"),
        ('touch "$1"', 0, "nothing is changed", "vxlan"),
        ('sed -i s,/16,/30, "$1"', 1, '"Network": "10.1.0.0/30"', "vxlan"),
        ('echo "{" > "$1"', 1, "{", "vxlan"),
        ("exit 3", 1, "", "vxlan"),
    ],
)
def test_edit_writes_what_was_changed_and_loses_nothing(
    etcd: Etcd,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    command: str,
    status: int,
    says: str,
    kept: str,
) -> None:
    monkeypatch.setenv("EDITOR", editor(tmp_path, command))
    monkeypatch.delenv("VISUAL", raising=False)
    assert main(["config", "edit"]) == status
    assert says in capfd.readouterr().out
    assert kept in str(etcd.config)


def test_set_refuses_a_bad_config(run: Run, etcd: Etcd) -> None:
    status, _, err = run("config", "set", '{"Network":"10.2.0.0/16","Backend":{"Type":"gre"}}')
    assert status == 1
    assert "command line, key Backend.Type: 'gre'" in err
    assert etcd.config == GOOD


def test_etcd_flags_reach_the_client(run: Run, etcd: Etcd) -> None:
    run("config", "get", "-etcd-endpoints=https://a:1,https://b:2", "--etcd-cafile=/ca", "--etcd-prefix=/p/")
    assert etcd.options == EtcdOptions(("https://a:1", "https://b:2"), cafile="/ca", prefix="/p")
    assert etcd.prefix == "/p"


def test_an_etcd_that_is_away_is_one_line(run: Run, etcd: Etcd) -> None:
    etcd.down = True
    status, _, err = run("reserve", str(SUBNET), "--public-ip", str(NODE))
    assert status == 1
    assert "connection refused" in err


def test_reserve_makes_a_key_that_lives_for_ever(run: Run, etcd: Etcd) -> None:
    assert run("reserve", "10.1.5.0/24", "--public-ip=192.0.2.1") == (
        0, "10.1.5.0/24 is reserved for 192.0.2.1\n", "",
    )  # fmt: skip
    assert etcd.leases == {SUBNET: lease(SUBNET, NODE)}
    assert run("reserve", "10.1.5.0/24", "--public-ip=192.0.2.1")[0] == 0


def test_reserve_makes_a_held_lease_permanent_and_keeps_its_data(run: Run, etcd: Etcd) -> None:
    held = lease(SUBNET, NODE, "vxlan", {"VNI": 1, "VtepMAC": "02:00:00:00:00:01"}, etcd_lease=99)
    etcd.leases[SUBNET] = held
    assert run("reserve", str(SUBNET), "--public-ip", str(NODE))[0] == 0
    assert etcd.leases[SUBNET] == replace(held, etcd_lease=0)


@pytest.mark.parametrize(
    ("arguments", "parts", "expected"),
    [
        (["10.1.5.0/24", "--public-ip=192.0.2.2"], ["10.1.5.0/24", "belongs to 192.0.2.1"], 1),
        (["10.1.6.0/24", "--public-ip=192.0.2.1"], ["192.0.2.1 holds 10.1.5.0/24"], 1),
        (["10.1.0.0/24", "--public-ip=192.0.2.3"], ["10.1.0.0/24", "from 10.1.1.0 to 10.1.255.0"], 1),
        (["10.2.0.0/24", "--public-ip=192.0.2.3"], ["10.2.0.0/24"], 1),
        (["10.1.8.0/25", "--public-ip=192.0.2.3"], ["10.1.8.0/25", "one /24"], 1),
        (["10.1.8.1/24", "--public-ip=192.0.2.3"], ["'10.1.8.1/24'", "10.1.5.0/24"], 2),
        (["10.1.8.0", "--public-ip=192.0.2.3"], ["'10.1.8.0'"], 2),
        (["10.1.8.0/24"], ["--public-ip"], 1),
        (["10.1.8.0/24", "--public-ip="], ["--public-ip"], 2),
        (["--public-ip=192.0.2.3"], ["SUBNET"], 2),
    ],
)
def test_reserve_refuses_what_no_node_would_take(
    run: Run, etcd: Etcd, arguments: list[str], parts: list[str], expected: int
) -> None:
    before = {SUBNET: lease(SUBNET, NODE, etcd_lease=99)}
    etcd.leases.update(before)
    status, _, err = run("reserve", *arguments)
    assert status == expected
    assert [part for part in parts if part not in err] == []
    assert etcd.leases == before


def test_reserve_names_a_key_that_holds_no_lease(run: Run, etcd: Etcd) -> None:
    etcd.rubbish = "/coreos.com/network/subnets/10.1.5.0-24"
    status, _, err = run("reserve", "10.1.5.0/24", "--public-ip=192.0.2.1")
    assert status == 1
    assert f"etcd key {etcd.rubbish} holds no lease" in err


def test_unreserve_gives_the_key_a_life_so_that_its_node_goes_on(run: Run, etcd: Etcd) -> None:
    etcd.leases[SUBNET] = lease(SUBNET, NODE, "host-gw")
    assert run("unreserve", str(SUBNET))[0] == 0
    assert etcd.leases == {SUBNET: lease(SUBNET, NODE, "host-gw", etcd_lease=86_400)}


def test_unreserve_now_removes_the_key(run: Run, etcd: Etcd) -> None:
    etcd.leases[SUBNET] = lease(SUBNET, NODE)
    assert run("unreserve", "--now", str(SUBNET)) == (0, "10.1.5.0/24 is free\n", "")
    assert etcd.leases == {}


@pytest.mark.parametrize("held", [None, lease(SUBNET, NODE, etcd_lease=99)])
def test_unreserve_leaves_what_is_not_reserved(run: Run, etcd: Etcd, held: Lease | None) -> None:
    etcd.leases = {} if held is None else {SUBNET: held}
    status, _, err = run("unreserve", "--now", str(SUBNET))
    assert status == 1
    assert ("this one is free" if held is None else "an ordinary lease of 192.0.2.1") in err
    assert etcd.leases == ({} if held is None else {SUBNET: held})


DUAL = (
    '{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}'
)
BOTH = (SUBNET, IPv6Network("fc00:0:0:5::/64"))


def dual_lease(first: str, second: str = "::") -> Lease:
    return Lease.of(BOTH, Claim("", (Endpoint(IPv4Address(first)), Endpoint(IPv6Address(second)))))


@pytest.mark.parametrize("swapped", [False, True])
def test_reserve_takes_a_subnet_of_each_family(run: Run, etcd: Etcd, swapped: bool) -> None:
    etcd.config = DUAL
    words = [str(subnet) for subnet in BOTH]
    status, out, _ = run("reserve", *(words[::-1] if swapped else words), "--public-ip=192.0.2.1")
    assert (status, out) == (0, "10.1.5.0/24 and fc00:0:0:5::/64 is reserved for 192.0.2.1\n")
    assert etcd.leases == {SUBNET: dual_lease("192.0.2.1")}
    assert run("unreserve", "--now", "fc00:0:0:5::/64")[:2] == (
        0,
        "10.1.5.0/24 and fc00:0:0:5::/64 is free\n",
    )


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["10.1.6.0/24"], "one /64 from fc00:0:0:1:: to fc00:0:0:ffff::"),
        (["fc00:0:0:6::/64"], "one /24 from 10.1.1.0"),
        (["10.1.6.0/24", "10.1.7.0/24", "fc00:0:0:6::/64"], "10.1.6.0/24, 10.1.7.0/24"),
        (["10.1.6.0/24", "fc00:0:0:5::/64"], "belongs to 192.0.2.1"),
        (["10.1.5.0/24", "fc00:0:0:6::/64"], "belongs to 192.0.2.1"),
        (["10.1.6.0/24", "fc00::/64"], "one /64"),
    ],
)
def test_reserve_refuses_half_of_a_pair_and_what_is_taken(
    run: Run, etcd: Etcd, arguments: list[str], part: str
) -> None:
    etcd.config = DUAL
    etcd.leases[SUBNET] = dual_lease("192.0.2.1", "2001:db8::1")
    status, _, err = run("reserve", *arguments, "--public-ip=192.0.2.2")
    assert status == 1
    assert part in err
    assert list(etcd.leases) == [SUBNET]


def test_reserve_in_a_network_of_ipv6_alone_wants_that_address(run: Run, etcd: Etcd) -> None:
    etcd.config = DUAL.replace('"Network"', '"EnableIPv4": false, "Network"')
    assert "--public-ipv6" in run("reserve", "fc00:0:0:5::/64", "--public-ip=192.0.2.1")[2]
    assert (
        "no IPv4 subnet" in run("reserve", "fc00:0:0:5::/64", "10.1.5.0/24", "--public-ipv6=2001:db8::1")[2]
    )
    assert run("reserve", "fc00:0:0:5::/64", "--public-ipv6=2001:db8::1")[0] == 0
    assert etcd.leases == {BOTH[1]: lease(BOTH[1], "2001:db8::1")}
