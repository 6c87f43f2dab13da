"""`flannel-ebpf doctor`: is anything on this host in the overlay's way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from flannel_ebpf.base.family import Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose import checks_firewall, checks_host, checks_overlay
from flannel_ebpf.commands.diagnose.console import (
    NOT_RUNNING,
    NothingHereError,
    console,
    json_flag,
    print_json,
    wrapped,
)
from flannel_ebpf.commands.diagnose.facts import Facts, gather
from flannel_ebpf.commands.diagnose.finding import Check, Finding
from flannel_ebpf.commands.diagnose.networks import Here, network_flag, networks
from flannel_ebpf.commands.flags import node_flags, options_from

CHECKS: dict[str, Check] = {**checks_host.CHECKS, **checks_overlay.CHECKS, **checks_firewall.CHECKS}

_COLOURS = {"ok": "green", "note": "yellow", "problem": "bold red"}


@click.command(short_help="Check this host and say what is in the overlay's way.")
@node_flags
@network_flag
@json_flag
def doctor(only: Network | None, as_json: bool, **values: Any) -> int:
    """Check this host: kernel, rights, daemon, etcd, devices, MTUs, firewall rules, Docker, counters.

    Works without the daemon too. Status 0: no problem; 1: at least one; 3: none, but no daemon runs.
    """
    options = options_from(values)
    results = [(here, examine(*gather(options, here))) for here in _networks(options, only)]
    if as_json:
        print_json("doctor", [_plain(here, found) for here, found in results])
    else:
        for here, found in results:
            _print(here, found)
    every = [finding for _, found in results for findings in found.values() for finding in findings]
    problems = [finding for finding in every if finding.level == "problem"]
    if any(not finding.only_stopped for finding in problems):
        return 1
    return NOT_RUNNING if problems else 0


def examine(*views: Facts) -> dict[str, list[Finding]]:
    """Return what every check finds, by the check's name: what each family sees, and once what both see."""
    return {
        name: list(dict.fromkeys(finding for facts in views for finding in check(facts)))
        for name, check in CHECKS.items()
    }


def _networks(options: Options, only: Network | None) -> Sequence[Here | None]:
    try:
        return networks(options, only)
    except NothingHereError:
        if only:
            raise
        return [None]  # the host alone


def _plain(here: Here | None, found: dict[str, list[Finding]]) -> dict[str, Any]:
    checks = {name: [asdict(finding) for finding in findings] for name, findings in found.items()}
    return {"network": str(here.network) if here else None, "checks": checks}


def _print(here: Here | None, found: dict[str, list[Finding]]) -> None:
    out = console()
    if here:
        out.print(Text(f"network {here.network}", "bold"))
    for name, findings in found.items():
        if not findings:
            out.print(Text("ok      ", _COLOURS["ok"]), Text(name), sep=" ")
        for finding in findings:
            lines = list(_lines(finding))
            out.print(
                Text(f"{finding.level:<8}", _COLOURS[finding.level]), Text(f"{name}: {lines[0]}"), sep=" "
            )
            for line in lines[1:]:
                out.print(Text(line))


def _lines(finding: Finding) -> Iterator[str]:
    indent = " " * 9
    yield from wrapped(finding.what, rest=f"{indent}    ")
    for word, text in (("so", finding.effect), ("do", finding.do)):
        if text:
            yield from wrapped(f"{word}: {text}", indent, f"{indent}    ")
