"""Every command of this folder, asked wrongly: one line, the right exit status, no trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_ebpf.cli import main

NEEDS_A_NETWORK = ("probe", "peers", "pods", "flows", "top --count=1", "maps peers")
EVERY = (*NEEDS_A_NETWORK, "doctor", "dump", "leases")


@pytest.mark.parametrize("command", NEEDS_A_NETWORK)
def test_where_no_daemon_has_run_the_status_is_3(
    command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = [f"--state-dir={tmp_path}", f"--bpf-pin-root={tmp_path}"]
    assert main([*command.split(), *places]) == 3
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "no daemon has run here" in err


@pytest.mark.parametrize("command", EVERY)
@pytest.mark.parametrize("flags", [["--no-such-flag"], ["--network=10.1.0.0"], ["one", "too", "many"]])
def test_a_wrong_command_line_is_status_2(
    command: str, flags: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([*command.split(), *flags]) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    "line",
    ["maps nothing", "flows --proto=gre", "flows --port=99999", "flows --pod=x", "top --interval=0",
     "probe --count=0", "peers --sort=age", "flows --limit=0", "probe --timeout=x"],
)  # fmt: skip
def test_a_value_out_of_range_is_status_2(line: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_an_archive_that_cannot_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["dump", "/proc/nothing/case.tar.gz", f"--state-dir={tmp_path}"]) == 1
    assert "a file that can be written" in capfd.readouterr().err
