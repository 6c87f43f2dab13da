"""Measure every mode against every workload: kernel path and BPF, vxlan, host-gw and udp, side by side.

Builds one lab per mode, all of them at once, and lets them take turns. Root only. Everything it makes lies in
namespaces of its own and is removed at the end, also after an interrupt.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from perf import modes, page, plot, table, workloads
from perf.environment import describe
from perf.method import Method, Progress, standing
from perf.modes import Mode
from perf.results import Table, to_json
from perf.workloads import Workload

from flannel_ebpf.base.errors import FlannelError, LabError
from flannel_ebpf.base.family import Family

T = TypeVar("T")


def main() -> int:
    """Measure, print, write; return 0 when every result holds, 1 otherwise, 130 when interrupted."""
    options = arguments()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    progress = Progress()
    try:
        if os.geteuid() != 0:
            raise LabError("measuring makes network namespaces, which takes root: run it with sudo")
        with tempfile.TemporaryDirectory(prefix="flannel-ebpf-perf-") as name:
            return measure(options, Path(name), progress)
    except FlannelError as error:
        progress.clear()
        print(f"perf_compare: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        progress.clear()
        print("perf_compare: interrupted, everything it made is removed", file=sys.stderr)
        return 130


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="the main modes and workloads, in under 3 minutes"
    )
    parser.add_argument("--modes", help=f"comma list of {', '.join(modes.MODES)}")
    parser.add_argument("--workloads", help="comma list; `all` is the default without --quick")
    parser.add_argument("--family", type=int, choices=[4, 6], default=4, help="of pods and nodes; default 4")
    parser.add_argument("--rounds", type=int, help="default 5, with --quick 3")
    parser.add_argument("--seconds", type=int, default=1, help="of each measurement, default 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with plots there")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the plots alone there")
    return parser.parse_args()


def measure(options: argparse.Namespace, folder: Path, progress: Progress) -> int:
    """Build everything, measure, and hand out the results."""
    family = Family(options.family)
    workloads.build_generator(folder, family)
    every = workloads.workloads(folder, family)
    picked = pick("mode", options.modes, modes.MODES, modes.QUICK if options.quick else modes.DEFAULT)
    chosen = [replace(one, family=family) for one in picked if family is Family.V4 or one.backend != "udp"]
    loads = pick("workload", options.workloads, every, workloads.QUICK if options.quick else every)
    method = Method(chosen, loads, options.rounds or (3 if options.quick else 5), options.seconds)
    with standing(chosen, folder, progress) as ends:
        env = describe(ends[chosen[0].name], method.rounds, method.seconds)
        results = method.run(ends, progress)
    progress.clear()
    report(results)
    write(options, env, results, texts(chosen, loads))
    return 1 if table.refusals(results) else 0


def pick(what: str, words: str | None, known: Mapping[str, T], default: Iterable[str]) -> list[T]:
    """Return what a comma list names, in the order of `known`; LabError for a name that is not there."""
    wanted = set(known if words == "all" else words.split(",") if words else default)
    if unknown := wanted - known.keys():
        raise LabError(f"no {what} {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return [one for name, one in known.items() if name in wanted]


def texts(chosen: Sequence[Mode], loads: Sequence[Workload]) -> dict[str, str]:
    """Say what each mode and workload is."""
    return {mode.name: mode.text for mode in chosen} | {load.name: load.text for load in loads}


def report(results: Table) -> None:
    """Print the tables."""
    print(f"Medians, and ratios to {table.BASE} taken round by round:\n\n{table.markdown(results)}")
    print(f"\n{table.targets(results)}")
    for line in table.refusals(results):
        print(f"REFUSED {line}", file=sys.stderr)


def write(options: argparse.Namespace, env: dict[str, Any], results: Table, words: dict[str, str]) -> None:
    """Write the files that were asked for, each whole or not at all."""
    for path, text in (
        (options.json, json.dumps(to_json(env, results), indent=1)),
        (options.html, page.html(env, results, words)),
        (options.svg, plot.svg(results)),
    ):
        if path:
            partial = path.with_name(f".{path.name}.partial")
            partial.write_text(f"{text}\n")
            partial.replace(path)
            print(f"written: {path}")


def interrupted(_number: int, _frame: FrameType | None) -> None:
    """End as an interrupt from the keyboard does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
