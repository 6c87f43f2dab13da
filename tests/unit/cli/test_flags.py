"""The flags of `up`: each spelling, its variable, and what is no value."""

from __future__ import annotations

import logging
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.options import EtcdOptions, KubeOptions, Options
from flannel_ebpf.cli import COMMANDS, main
from flannel_ebpf.commands.flags import without_effect
from tests.unit.cli.conftest import Daemon


def test_without_flags_the_options_are_the_defaults(daemon: Daemon) -> None:
    assert daemon.options() == Options()


FLANNELD_FLAGS: list[tuple[str, str, Any]] = [
    ("subnet-file", "/run/other.env", Path("/run/other.env")),
    ("subnet-lease-renew-margin", "1439", 1439),
    ("iface-can-reach", "192.0.2.9", "192.0.2.9"),
    ("public-ip", "192.0.2.1", IPv4Address("192.0.2.1")),
    ("ip-masq", "true", True),
    ("ip-masq-fully-random-disable", "true", True),
    ("iptables-resync", "9", 9),
    ("iptables-forward-rules", "false", False),
    ("ip-blackhole-route", "1", True),
    ("healthz-ip", "127.0.0.1", "127.0.0.1"),
    ("healthz-port", "8090", 8090),
    ("iface", "eth1", ("eth1",)),
    ("iface-regex", "eth(1| 2)", ("eth(1| 2)",)),
]
OWN_FLAGS: list[tuple[str, str, Any]] = [
    ("datapath", "ebpf", "ebpf"),
    ("fastpath", "subnets", "subnets"),
    ("revalidate", "0.5", 0.5),
    ("attach", "clsact", "clsact"),
    ("pod-grace", "0.5", 0.5),
    ("pod-headroom", "false", False),
    ("flow-entries", "1024", 1024),
    ("source-check", "count", "count"),
    ("xdp", "auto", "auto"),
    ("stand-aside", "0", 0.0),
    ("lease-ttl", "600", 600),
    ("wipe-grace", "0", 0.0),
    ("state-dir", "/run/two", Path("/run/two")),
    ("bpf-pin-root", "/sys/fs/bpf/two", Path("/sys/fs/bpf/two")),
    ("metrics-listen", "127.0.0.1:9100", "127.0.0.1:9100"),
]


@pytest.mark.parametrize(("flag", "text", "value"), FLANNELD_FLAGS + OWN_FLAGS)
def test_every_flag_in_each_of_its_spellings(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, flag: str, text: str, value: Any
) -> None:
    field = flag.replace("-", "_")
    assert getattr(Options(), field) != value
    for spelling in ([f"--{flag}={text}"], [f"-{flag}={text}"]):
        assert getattr(daemon.options(*spelling), field) == value
    if not isinstance(value, bool):
        assert getattr(daemon.options(f"-{flag}", text), field) == value
    monkeypatch.setenv(f"FLANNELD_{field.upper()}", text)
    assert getattr(daemon.options(), field) == value


@pytest.mark.parametrize("field", ["keyfile", "certfile", "cafile", "username", "password", "prefix"])
def test_etcd_flags(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, field: str) -> None:
    pair = {"keyfile": ["--etcd-certfile=/c"], "certfile": ["--etcd-keyfile=/k"]}.get(field, [])
    assert getattr(daemon.options(f"--etcd-{field}=/x", *pair).etcd, field) == "/x"
    monkeypatch.setenv(f"FLANNELD_ETCD_{field.upper()}", "/y")
    assert getattr(daemon.options(*pair).etcd, field) == "/y"


def test_endpoints_are_a_comma_list(daemon: Daemon) -> None:
    given = "https://192.0.2.1:2379, http://[2001:db8::1]:4001,etcd:2379"
    expected = ("https://192.0.2.1:2379", "http://[2001:db8::1]:4001", "etcd:2379")
    assert daemon.options("--etcd-endpoints", given).etcd == EtcdOptions(endpoints=expected)


def test_a_slash_at_the_prefix_end_says_nothing(daemon: Daemon) -> None:
    assert daemon.options("--etcd-prefix=/net/a/").etcd.prefix == "/net/a"


def test_a_flag_wins_over_its_variable_and_an_empty_variable_is_none(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLANNELD_HEALTHZ_PORT", "1")
    monkeypatch.setenv("FLANNELD_PUBLIC_IP", "")
    options = daemon.options("--healthz-port=2")
    assert (options.healthz_port, options.public_ip) == (2, None)


def test_an_empty_public_ip_is_none(daemon: Daemon) -> None:
    assert daemon.options("--public-ip=").public_ip is None
    assert daemon.options("--public-ipv6=").public_ipv6 is None


def test_public_addresses_are_of_their_family(daemon: Daemon) -> None:
    options = daemon.options("--public-ip=192.0.2.1", "--public-ipv6=2001:DB8::1")
    assert (str(options.public_ip), str(options.public_ipv6)) == ("192.0.2.1", "2001:db8::1")


def test_repeatable_flags_keep_their_order(daemon: Daemon) -> None:
    options = daemon.options("--iface=eth1", "-iface", "192.0.2.7", "--iface-regex=a", "--iface-regex=b")
    assert options.iface == ("eth1", "192.0.2.7")
    assert options.iface_regex == ("a", "b")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--ip-masq"], True),
        (["-ip-masq", "--xdp=off"], True),
        (["--ip-masq=true"], True),
        (["--ip-masq=T"], True),
        (["--ip-masq=false"], False),
        (["-ip-masq=0"], False),
        (["--ip-masq=false", "--ip-masq"], True),
    ],
)
def test_booleans_stand_alone_or_carry_a_value(daemon: Daemon, arguments: list[str], expected: bool) -> None:
    assert daemon.options(*arguments).ip_masq is expected


@pytest.mark.parametrize(
    ("arguments", "level"),
    [([], logging.INFO), (["-v", "1"], logging.DEBUG), (["-v=2"], logging.DEBUG), (["--v=0"], logging.INFO)],
)
def test_verbosity_as_klog_spells_it(daemon: Daemon, arguments: list[str], level: int) -> None:
    daemon.options(*arguments)
    assert logging.getLogger("flannel_ebpf").level == level


def test_no_verbosity_lets_libraries_chatter(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLANNELD_V", "10")
    daemon.options()
    logging.getLogger("flannel_ebpf.somewhere").debug("ours")
    logging.getLogger("pyroute2.core").debug("theirs")
    assert [line.rpartition(" ")[2] for line in capfd.readouterr().err.splitlines()] == ["ours"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-kube-subnet-mgr=false", "--set-node-network-unavailable"],
        ["-vmodule=a=1,b=2", "-log_backtrace_at=gopher.go:234"],
        ["-iface-regex=(", "-iface="],
    ],
)
def test_flags_of_flanneld_that_alter_nothing_here_are_accepted(daemon: Daemon, arguments: list[str]) -> None:
    options = daemon.options(*arguments)
    assert replace(options, iface=(), iface_regex=()) == Options()


def test_flags_about_kubernetes(daemon: Daemon) -> None:
    options = daemon.options(
        "-kube-subnet-mgr", "-kube-api-url=https://192.0.2.1:6443", "-kubeconfig-file=/etc/k",
        "-kube-annotation-prefix=flannel.example.org", "-net-config-path=/etc/net",
        "-set-node-network-unavailable=0",
    )  # fmt: skip
    assert options.kube == KubeOptions(
        True, "https://192.0.2.1:6443", "/etc/k", "flannel.example.org", Path("/etc/net"), False
    )


@pytest.mark.parametrize(
    ("arguments", "field", "value"),
    [
        (["-healthz-ip=::1"], "healthz_ip", "::1"),
        (["-healthz-ip="], "healthz_ip", "::"),
        (["-healthz-port=0x1F91"], "healthz_port", 8081),
        (["-healthz-port=017621"], "healthz_port", 8081),
        (["-metrics-listen=[::1]:9100"], "metrics_listen", "::1:9100"),
        (["-metrics-listen=:9100"], "metrics_listen", ":::9100"),
    ],
)
def test_addresses_and_numbers_as_go_reads_them(
    daemon: Daemon, arguments: list[str], field: str, value: Any
) -> None:
    assert getattr(daemon.options(*arguments), field) == value


def test_the_root_of_etcds_keys_is_a_prefix(daemon: Daemon) -> None:
    assert daemon.options("--etcd-prefix=/").etcd.prefix == "/"


def test_a_variable_that_is_no_flags_is_said(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("FLANNELD_TYPO", "FLANNELD_IFACE", "FLANNELD_VMODULE"):
        monkeypatch.setenv(name, "eth0")
    daemon.options()
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith("these variables are no flag's and are ignored: FLANNELD_TYPO")


@pytest.mark.parametrize(
    ("margin", "ttl", "seconds"), [(60, 86_400, 3600), (1439, 86_400, 86_340), (60, 60, 40), (1, 86_400, 60)]
)
def test_a_short_lease_is_renewed_in_its_life(margin: int, ttl: int, seconds: float) -> None:
    assert Options(subnet_lease_renew_margin=margin, lease_ttl=ttl).renew_margin == seconds


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, []),
        ({"datapath": "kernel"}, []),
        ({"fastpath": "off"}, []),
        ({"fastpath": "off", "xdp": "native"}, ["--xdp does nothing with --fastpath=off"]),
        ({"datapath": "kernel", "fastpath": "subnets"}, ["--fastpath does nothing with --datapath=kernel"]),
        (
            {"datapath": "kernel", "xdp": "generic", "flow_entries": 64},
            [
                "--xdp does nothing with --datapath=kernel",
                "--flow-entries does nothing with --datapath=kernel",
            ],
        ),
    ],
)
def test_a_flag_that_cannot_count_is_said(changed: dict[str, Any], said: list[str]) -> None:
    assert without_effect(replace(Options(), **changed)) == said


def test_help_names_every_command_and_each_flag_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capfd.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []
    assert main(["up", "--help"]) == 0
    text = capfd.readouterr().out
    for flag, _, _ in FLANNELD_FLAGS + OWN_FLAGS:
        assert f"  --{flag} " in text
