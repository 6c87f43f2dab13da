"""The command line as a whole: exit status, help, version, log lines."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from ipaddress import IPv4Network
from pathlib import Path
from types import ModuleType

import pytest

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.options import EtcdOptions, Options
from flannel_ebpf.cli import as_flanneld, main
from flannel_ebpf.commands.which import Asked
from tests.unit.cli.conftest import Daemon


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
