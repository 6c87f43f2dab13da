"""docker-opts beside flannel's mk-docker-opts.sh: the same files, byte for byte."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_ebpf.cli import main

ENV = "FLANNEL_NETWORK=10.1.0.0/16\nFLANNEL_SUBNET=10.1.74.1/24\nFLANNEL_MTU=1472\nFLANNEL_IPMASQ=false\n"
BIP, MASQ, MTU = '"--bip=10.1.74.1/24"', '"--ip-masq=true"', '"--mtu=1472"'
EACH = f"DOCKER_OPT_BIP={BIP}\nDOCKER_OPT_IPMASQ={MASQ}\nDOCKER_OPT_MTU={MTU}\n"
ALL = " --bip=10.1.74.1/24 --ip-masq=true --mtu=1472"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], f'{EACH}DOCKER_OPTS="{ALL}"\n'),
        (["-i"], EACH),
        (["-c"], f'DOCKER_OPTS="{ALL}"\n'),
        (["-i", "-c"], f'{EACH}DOCKER_OPTS="{ALL}"\n'),
        (["-k", "CUSTOM_KEY"], f'{EACH}CUSTOM_KEY="{ALL}"\n'),
        (["-k", "DOCKER_NETWORK_OPTIONS", "-c"], f'DOCKER_NETWORK_OPTIONS="{ALL}"\n'),
        (["-m", "-c"], 'DOCKER_OPTS=" --bip=10.1.74.1/24 --mtu=1472"\n'),
        (["-c", "--allow-direct-routing"], f'DOCKER_OPTS=" --allow-direct-routing{ALL}"\n'),
    ],
)
def test_writes_what_flannels_script_writes(flags: list[str], expected: str, tmp_path: Path) -> None:
    source, target = tmp_path / "subnet.env", tmp_path / "sub" / "docker"
    source.write_text(ENV)
    assert main(["docker-opts", "-f", str(source), "-d", str(target), *flags]) == 0
    assert target.read_text() == expected


def test_options_that_the_environment_has_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "subnet.env", tmp_path / "docker"
    source.write_text("FLANNEL_SUBNET='10.1.74.1/24'\n")
    monkeypatch.setenv("DOCKER_OPTS", "--debug")
    assert main(["docker-opts", "-f", str(source), "-d", str(target), "-c"]) == 0
    assert target.read_text() == 'DOCKER_OPTS="--debug  --bip=10.1.74.1/24"\n'


@pytest.mark.parametrize(
    ("text", "flags", "status", "says"),
    [
        (None, [], 1, "the file that the daemon writes when it is ready"),
        ("FLANNEL_IPMASQ=maybe\n", [], 1, "FLANNEL_IPMASQ: 'maybe' cannot be used: true or false"),
        ("FLANNEL_SUBNET=10.1.74.1/99\n", [], 1, "an address such as 10.1.74.1/24"),
        (ENV, ["-k", "A B"], 2, "'A B' is not the name of a variable"),
        (ENV, ["-d", "/proc/nothing/here"], 1, "a file that can be written"),
        (ENV, ["-z"], 2, "No such option"),
    ],
)
def test_bad_input_is_one_line(
    text: str | None,
    flags: list[str],
    status: int,
    says: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "subnet.env"
    if text is not None:
        source.write_text(text)
    command = ["docker-opts", "-f", str(source), "-d", str(tmp_path / "docker"), *flags]
    assert main(command) == status
    (line,) = capfd.readouterr().err.splitlines()
    assert says in line
