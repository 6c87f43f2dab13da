"""tools/setup_packages.sh against stand-ins for Debian's tools: an interrupted run breaks nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.polls import eventually

SCRIPT = Path(__file__).parents[3] / "tools" / "setup_packages.sh"

STAND_INS = {
    "dpkg-query": '[ -e {here}/ipset ] || [ "${{!#}}" != ipset ] || exit 1; printf installed',
    "dpkg": "echo dpkg $* >> {here}/calls",
    "systemctl": "echo systemctl $* >> {here}/calls",
    # Installs one package, which brings a service, when the test lets it go on.
    "apt-get": """case "$*" in *install*) touch {here}/begun
        until [ -e {here}/go ]; do sleep 0.02; done
        touch {here}/units/etcd.service {here}/ipset;; esac""",
}


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A checkout with the script alone, stand-ins in bin/, and what stands for two of the host's folders."""
    for folder in ("bin", "sbin", "units", "tools"):
        (tmp_path / folder).mkdir()
    shutil.copy(SCRIPT, tmp_path / "tools")
    for name, text in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text.format(here=tmp_path)}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path


def begin(here: Path) -> subprocess.Popen[str]:
    """Start it as a terminal would, in a process group of its own."""
    mounts = f"mount --bind {here}/sbin /usr/sbin; mount --bind {here}/units /lib/systemd/system"
    command = f"{mounts}; exec {here}/tools/{SCRIPT.name}"
    return subprocess.Popen(
        # A script's job, as this run may be, begins with Ctrl-C ignored.
        ["env", "--default-signal=INT", "unshare", "--mount", "bash", "-c", command],
        env={"PATH": f"{here}/bin:/usr/bin:/bin"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        process_group=0,
    )


def test_ctrl_c_waits_for_apt_and_the_next_run_ends_what_was_begun(here: Path) -> None:
    first = begin(here)
    eventually((here / "begun").exists, "apt is at it")
    assert (here / "sbin" / "policy-rc.d").read_text().endswith("exit 101\n")  # no service is started
    os.killpg(first.pid, signal.SIGINT)
    (here / "go").touch()
    assert first.wait(30) == 130
    assert (here / "ipset").exists(), "apt was not interrupted"
    assert not (here / "sbin" / "policy-rc.d").exists()
    assert "systemctl" not in (here / "calls").read_text()
    second = begin(here)
    assert second.communicate(timeout=30) == (None, "")
    assert second.returncode == 0
    assert "systemctl --quiet disable etcd\n" in (here / "calls").read_text()
    assert list((here / "build").iterdir()) == []


def test_a_policy_of_the_hosts_own_is_there_again(here: Path) -> None:
    policy = here / "sbin" / "policy-rc.d"
    policy.write_text("the host's")
    (here / "go").touch()
    assert begin(here).wait(30) == 0
    assert policy.read_text() == "the host's"


def test_what_apt_says_is_passed_on(here: Path) -> None:
    (here / "bin" / "apt-get").write_text("#!/bin/bash\necho no such host >&2; exit 100\n")
    run = begin(here)
    assert "no such host\nsetup: the package lists cannot be fetched" in run.communicate(timeout=30)[1]
    assert run.returncode == 1
    assert not (here / "sbin" / "policy-rc.d").exists()
