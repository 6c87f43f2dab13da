from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.options import EtcdOptions, KubeOptions, Options
from flannel_ebpf.cli import COMMANDS, as_flanneld, main
from flannel_ebpf.commands.flags import without_effect
from flannel_ebpf.commands.which import Asked


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No FLANNELD_* variable of the machine, and the logging set-up of a command ends with its test."""
    import os  # noqa: PLC0415 - only here

    for name in os.environ:
        if name.startswith("FLANNELD_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(logging.root, "handlers", [])


class Daemon:
    """Stands where the daemon is: keeps the options it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[Options] = []
        self.status = 0
        self.failure: Exception | None = None
        module = ModuleType("flannel_ebpf.agent.daemon")
        module.run = self.run  # type: ignore[attr-defined] # a module made by hand
        monkeypatch.setitem(sys.modules, "flannel_ebpf.agent.daemon", module)

    def run(self, options: Options) -> int:
        self.calls.append(options)
        if self.failure:
            raise self.failure
        return self.status

    def options(self, *arguments: str) -> Options:
        assert main(["up", *arguments]) == 0
        return self.calls.pop()


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return Daemon(monkeypatch)


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
    ("arguments", "parts"),
    [
        (["--subnet-lease-renew-margin=0"], ["--subnet-lease-renew-margin", "0", "1<=x<=1439"]),
        (["--subnet-lease-renew-margin=1440"], ["1440", "1<=x<=1439"]),
        (["--healthz-port=65536"], ["--healthz-port", "65536"]),
        (["--public-ip=eth0"], ["--public-ip", "'eth0'", "192.0.2.1"]),
        (["--public-ip=2001:db8::1"], ["--public-ip", "2001:db8::1"]),
        (["--public-ipv6=192.0.2.1"], ["--public-ipv6", "192.0.2.1"]),
        (["--etcd-endpoints=ftp://a:1"], ["--etcd-endpoints", "ftp://a:1", "https://"]),
        (["--etcd-endpoints=http://a:b"], ["--etcd-endpoints", "http://a:b"]),
        (["--without=redirect_neigh,warp"], ["--without", "warp", "csum_level"]),
        (["--etcd-endpoints=,"], ["--etcd-endpoints", "at least one"]),
        (["--etcd-prefix="], ["--etcd-prefix", "/coreos.com/network"]),
        (["--etcd-keyfile=/k"], ["--etcd-keyfile", "/k", "--etcd-certfile"]),
        (["--etcd-certfile=/c"], ["--etcd-certfile", "/c", "--etcd-keyfile"]),
        (["--datapath=fast"], ["--datapath", "'fast'", "auto", "ebpf", "kernel"]),
        (["--ip-masq=perhaps"], ["--ip-masq", "perhaps"]),
        (["--stand-aside=-1"], ["--stand-aside", "'-1'"]),
        (["--revalidate=nan"], ["--revalidate", "'nan'", "0.1 to 3600"]),
        (["--metrics-listen=9100"], ["--metrics-listen", "'9100'", "127.0.0.1:9100"]),
        (["-v=much"], ["-v", "'much'"]),
        (["-ip-mask=true"], ["'-ip-mask'", "'-ip-masq'"]),
        (["-subnet-lease-renew-margin=0b2"], ["--subnet-lease-renew-margin", "'0b2'"]),
        (["-healthz-ip=everywhere"], ["--healthz-ip", "'everywhere'"]),
        (["-metrics-listen=::1:9100"], ["--metrics-listen", "[::1]:9100"]),
        (["surplus"], ["surplus"]),
    ],
)
def test_a_bad_flag_is_one_line_and_status_2(
    daemon: Daemon, capfd: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert main(["up", *arguments]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("flannel-ebpf: ")
    assert [part for part in parts if part not in err] == []
    assert daemon.calls == []


def test_a_bad_variable_is_named_as_such(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLANNELD_HEALTHZ_PORT", "http")
    assert main(["up"]) == 2
    assert "FLANNELD_HEALTHZ_PORT" in capfd.readouterr().err


def test_an_error_of_ours_is_one_line_and_status_1(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.failure = KernelError("flannel.1:\n  no such device")
    assert main(["up"]) == 1
    assert capfd.readouterr().err == "flannel-ebpf: flannel.1: no such device\n"


def test_ctrl_c_is_no_trace(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.failure = KeyboardInterrupt()  # type: ignore[assignment] # not an Exception, but raised the same
    assert main(["up"]) == 130
    assert "Traceback" not in capfd.readouterr().err


def test_the_daemons_status_is_the_commands(daemon: Daemon) -> None:
    daemon.status = 3
    assert main(["up"]) == 3


@pytest.mark.parametrize(
    ("arguments", "target", "expected"),
    [
        (["down"], "commands.down:down", {"purge": False, "release": False, "force": False}),
        (
            ["down", "--purge", "--release", "--force"],
            "commands.down:down",
            {"purge": True, "release": True, "force": True},
        ),
        (["status"], "commands.status:status", {"as_json": False}),
        (["status", "--json"], "commands.status:status", {"as_json": True}),
    ],
)
def test_down_and_status_are_about_the_network_that_the_flags_name(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], target: str, expected: dict[str, bool]
) -> None:
    calls: list[tuple[Options, Asked, dict[str, bool]]] = []
    name, _, function = target.partition(":")
    module = ModuleType(f"flannel_ebpf.{name}")
    setattr(module, function, lambda options, asked, **given: calls.append((options, asked, given)))
    monkeypatch.setitem(sys.modules, f"flannel_ebpf.{name}", module)
    assert main([*arguments, "--state-dir=/run/two", "--etcd-prefix=/net/two"]) == 0
    options = Options(etcd=EtcdOptions(prefix="/net/two"), state_dir=Path("/run/two"))
    assert calls.pop() == (options, Asked(prefix="/net/two"), expected)
    assert main([*arguments, "--network=10.1.0.0/16", "--network", "10.2.0.0/16"]) == 0
    both = (IPv4Network("10.1.0.0/16"), IPv4Network("10.2.0.0/16"))
    assert calls.pop() == (Options(), Asked(networks=both), expected)
    monkeypatch.setenv("FLANNELD_ETCD_PREFIX", "/net/two")  # the daemon's environment names no network
    assert main(arguments) == 0
    assert calls.pop()[1] == Asked()


def test_log_lines_look_like_klogs_and_stay_lines(daemon: Daemon, capfd: pytest.CaptureFixture[str]) -> None:
    daemon.options()
    log = logging.getLogger("flannel_ebpf.somewhere")
    log.warning("two\nlines")
    log.debug("not asked for")
    logging.getLogger("library").info("not ours")
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    head, _, message = lines[0].partition("] ")
    assert message == r"two\nlines"
    assert head[0] == "W"
    assert "test_cli.py:" in head


@pytest.mark.parametrize("options", [["--version"], ["-version"], ["up", "-ip-masq", "-version"]])
def test_version_goes_to_stderr_as_flannelds_does(
    options: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", err)


def test_version_tells_commit_objects_and_kernel(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["version"]) == 0
    text = capfd.readouterr().out
    assert main(["version", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)
    assert text.split()[:2] == ["flannel-ebpf", facts["version"]]
    for said in (facts["commit"], *facts["objects"].values(), *facts["kernel"]["features"]):
        assert said
        assert said in text
    objects = ("datapath", "datapath6", "drops", "xdp", "xdp6")
    assert set(facts["objects"]) == {f"{one}.bpf.o" for one in objects}


@pytest.mark.parametrize(
    ("arguments", "program", "expected"),
    [
        (["-iface=eth0"], "flannel-ebpf", ["up", "-iface=eth0"]),
        (["--ip-masq", "-v=1"], "flannel-ebpf", ["up", "--ip-masq", "-v=1"]),
        ([], "flanneld", ["up"]),
        ([], "flannel-ebpf", []),
        (["--help"], "flannel-ebpf", ["--help"]),
        (["-version"], "flanneld", ["-version"]),
        (["up", "-iface=eth0"], "flannel-ebpf", ["up", "-iface=eth0"]),
    ],
)
def test_flags_without_a_command_are_flannelds(
    arguments: list[str], program: str, expected: list[str]
) -> None:
    assert as_flanneld(arguments, program) == expected


@pytest.mark.parametrize("group", [[], ["config"], ["lab"]])
def test_a_group_alone_prints_its_help_line_by_line(
    group: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(group) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("Usage: flannel-ebpf")
    assert "Commands:" in said


def test_help_is_a_command_too(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["help", "config", "set"]) == 0
    assert "flannel-ebpf config set" in capfd.readouterr().out


def test_every_summary_fits_its_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert [line for line in lines if (line.endswith("...") and "ARGS" not in line) or len(line) > 80] == []


def test_help_names_every_command_and_each_flag_once(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capfd.readouterr().out
    assert [name for name in COMMANDS if f"\n  {name} " not in text] == []
    assert main(["up", "--help"]) == 0
    text = capfd.readouterr().out
    for flag, _, _ in FLANNELD_FLAGS + OWN_FLAGS:
        assert f"  --{flag} " in text


def test_an_unknown_command_is_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["stat"]) == 2
    assert capfd.readouterr().err == "flannel-ebpf: there is no command 'stat': did you mean 'status'?\n"
    assert main(["xyzzy"]) == 2
    assert "`flannel-ebpf --help` lists them" in capfd.readouterr().err


def test_reading_the_command_line_imports_no_client_and_no_lab() -> None:
    script = (
        "import sys; from flannel_ebpf.cli import main; main(['up', '--help']);"
        "print([name for name in ('grpc', 'pyroute2', 'prometheus_client', 'bcc', 'flannel_ebpf.lab')"
        " if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_reader_that_has_seen_enough_is_no_trace() -> None:
    command = f"set -o pipefail; {sys.executable} -m flannel_ebpf up --help | true"
    result = subprocess.run(["bash", "-c", command], check=False, capture_output=True, text=True)
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr


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
