"""`flannel-ebpf dump`: everything that a support case needs, in one archive, without secrets."""

from __future__ import annotations

import calendar
import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose.console import NothingHereError, json_flag, print_json
from flannel_ebpf.commands.diagnose.networks import network_flag, networks
from flannel_ebpf.commands.flags import node_flags, options_from

_OURS = (
    ("version", "--json"), ("doctor",), ("doctor", "--json"), ("status",), ("status", "--json"), ("peers",),
    ("pods",), ("flows", "--limit=1000"), ("leases",), ("maps", "fl_peers"), ("maps", "fl_vteps"),
    ("maps", "fl_pods"), ("maps", "fl_ports"), ("maps", "fl_reasons"),
)  # fmt: skip
_THEIRS = (
    "ip -d -s link", "ip address", "ip -4 route show table all", "ip -6 route show table all", "ip rule",
    "ip -6 rule", "ip neigh", "bridge fdb", "ip xfrm policy", "nft list ruleset", "iptables-nft-save",
    "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save", "tc -s qdisc",
    "bpftool net", "bpftool prog", "ss -lunp", "uname -a",
    "sysctl -a -r ^net\\.(ipv4|ipv6|bridge|netfilter|core)\\.",
    "journalctl --no-pager -n 2000 -u flannel-ebpf",
)  # fmt: skip
_SECRET = re.compile(
    r"(?i)((?:password|passwd|secret|token|psk|privatekey)[\"']?\s*[=:]\s*[\"']?)[^\s\"',}]+"
)
_KEYS = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)
_SECONDS = 30  # for one command


@click.command(short_help="Gather everything a support case needs in one archive.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), required=False)
@node_flags
@network_flag
@json_flag
def dump(file: Path | None, only: Network | None, as_json: bool, **values: Any) -> None:
    """Write FILE, or flannel-ebpf-HOST-TIME.tar.gz: what our commands and the host's say, and files.

    Passwords, keys and tokens are left out. The archive is readable by its owner only.
    """
    options = options_from(values)
    host = os.uname().nodename
    target = file or Path(f"flannel-ebpf-{host}-{time.strftime('%Y%m%d-%H%M%S')}.tar.gz")
    flags = [f"--state-dir={options.state_dir}", f"--bpf-pin-root={options.bpf_pin_root}"]
    flags += [f"--subnet-file={options.subnet_file}"]
    names = []
    try:
        with (
            open(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as raw,
            tarfile.open(fileobj=raw, mode="w:gz") as archive,
        ):
            for name, text in _parts(options.state_dir, options.subnet_file, flags):
                _add(archive, f"{target.name.removesuffix('.tar.gz')}/{name}", without_secrets(text))
                names.append(name)
    except OSError as error:
        raise ConfigError("FILE", str(target), f"a file that can be written ({error.strerror})") from error
    if as_json:
        print_json("dump", {"file": str(target), "parts": names, "networks": _known(options, only)})
    else:
        click.echo(f"{target}: {len(names)} parts")


def _known(options: Options, only: Network | None) -> list[str]:
    try:
        return [str(one.network) for one in networks(options, only)]
    except NothingHereError:
        return []


def without_secrets(text: str) -> str:
    """Return the text without what follows the word password and the like, and without private keys."""
    return _SECRET.sub(r"\1(left out)", _KEYS.sub("(private key left out)", text))


def _parts(state_dir: Path, subnet_file: Path, flags: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every part."""
    for command in _OURS:
        given = [] if command[0] in ("version", "leases") else flags
        line = [sys.executable, "-m", "flannel_ebpf", *command, *given]
        yield f"flannel-ebpf/{'-'.join(command).replace('--', '')}", _run(line)
    for told in _THEIRS:
        if shutil.which(told.split()[0]):
            yield f"host/{re.sub(r'[^A-Za-z0-9]+', '-', told).strip('-')[:40]}", _run(told.split())
    for path in (*sorted(state_dir.glob("*.json")), subnet_file, Path("/etc/default/flannel-ebpf")):
        if path.is_file():
            yield f"files/{path.name}", path.read_text(errors="replace")


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{command[0]}: {error}\n"
    status = f"\n(status {done.returncode})\n{done.stderr}" if done.returncode else ""
    return done.stdout + status


def _add(archive: tarfile.TarFile, name: str, text: str) -> None:
    data = text.encode()
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), calendar.timegm(time.gmtime()), 0o600
    archive.addfile(entry, io.BytesIO(data))
