"""What holds for all tests: none is skipped, interrupts clean up, and the end says how many of each ran."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Generator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, settings

# Speed is no verdict: a busy machine must not fail a property.
settings.register_profile("any-speed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-speed")
# For a guest of `make kernels`, which takes twenty times as long; the kernel matters there, not the draw.
settings.register_profile("emulated", settings.get_profile("any-speed"), max_examples=20)

ROOT = Path(__file__).parent
KINDS = ("kernels", "hosts", "interop", "kube", "netns", "bpf", "unit")

# Helpers' assertions are as talkative as the tests'.
pytest.register_assert_rewrite("tests.polls", "tests.bpf", "tests.netns")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-frames", type=int, default=20_000, help="mutated frames per fuzz test (default 20000)"
    )
    parser.addoption("--race-tries", type=int, default=100, help="allocations in a race test (default 100)")
    parser.addoption(
        "--fuzz-rulesets", type=int, default=20, help="random firewall rulesets to judge (default 20)"
    )
    parser.addoption(
        "--strict-alignment", action="store_true", help="tests/bpf: as for hosts that demand aligned access"
    )
    parser.addoption(
        "--compiled", default="", help="tests/bpf: folder where tests/bpf/compiled.py has compiled objects"
    )
    parser.addoption(
        "--fastpath",
        default="flows",
        help="--fastpath of tests' daemons (default flows: without rules, auto would carry all at once, and "
        "what the kernel must see first would hardly be tested)",
    )
    parser.addoption("--without", default="", help="kernel features that the matrix's nodes do without")
    parser.addoption(
        "--kube-apiserver", default="", help="tests/netns/kube: this server in place of the double"
    )


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    # A shell's background job ignores SIGINT, and so would all that tests start and interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Make SIGTERM what Ctrl-C is: fixtures are torn down, so nothing stays behind."""
    raise KeyboardInterrupt


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest; let a parallel run keep together only tests that share something."""

    def kind(item: pytest.Item) -> str:
        return item.path.relative_to(ROOT).parts[0]

    items.sort(key=lambda item: KINDS.index(kind(item)))
    for item in items:
        # Labs are made for a test or for its file; programs and examples are not worth making twice.
        if kind(item) not in ("kube", "netns") or shares_with_its_file(item):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


def shares_with_its_file(item: pytest.Item) -> bool:
    """Say whether a test uses a fixture that lives as long as its module."""
    fixtures = item._fixtureinfo.name2fixturedefs  # pytest tells it nowhere else
    return any(definition.scope == "module" for found in fixtures.values() for definition in found)


@pytest.fixture(scope="session")
def fuzz_frames(request: pytest.FixtureRequest) -> int:
    """How many frames a fuzz test feeds."""
    return int(request.config.getoption("--fuzz-frames"))


@pytest.fixture(scope="session")
def race_tries(request: pytest.FixtureRequest) -> int:
    """How often a race test has nodes race."""
    return int(request.config.getoption("--race-tries"))


@pytest.fixture(scope="session")
def fuzz_rulesets(request: pytest.FixtureRequest) -> int:
    """How many random rulesets the proof is compared with the kernel for."""
    return int(request.config.getoption("--fuzz-rulesets"))


NO_SKIPS = "a skip counts as a failure here: every machine that runs these tests must be able to run all"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: {call.excinfo and call.excinfo.value}\n{NO_SKIPS}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: {report.longrepr}\n{NO_SKIPS}"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests of each kind ran and how they ended."""
    lines: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error"):
        for report in terminalreporter.getreports(outcome):
            parts = Path(report.nodeid).parts
            kind = parts[1] if len(parts) > 2 and parts[0] == ROOT.name else "other"
            lines.setdefault(kind, Counter())[outcome] += 1
    terminalreporter.section("tests by kind")
    for kind, counts in sorted(lines.items()):
        said = ", ".join(f"{number} {outcome}" for outcome, number in counts.items())
        terminalreporter.write_line(f"{kind:<6} {said}")
