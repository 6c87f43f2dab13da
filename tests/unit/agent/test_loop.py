"""What the loop does: which pass, what it survives, and when a node counts as ready."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flannel_ebpf.agent import supervisor
from flannel_ebpf.agent.loop import Loop
from flannel_ebpf.agent.reconcile import Outcome
from flannel_ebpf.agent.wake import Stop, Wake
from flannel_ebpf.base.config import parse_network_config
from flannel_ebpf.base.errors import BpfError, ConfigError, KernelError, ProgramsRequired
from flannel_ebpf.base.model import Mac, Skipped, Uplink
from flannel_ebpf.base.options import Options
from flannel_ebpf.desired.backends import Node
from flannel_ebpf.desired.objects import LinkAddress, Route, Ruleset, Sysctl
from flannel_ebpf.desired.plan import Failure, Put
from flannel_ebpf.leases.snapshot import View
from tests.samples import lease, stack

LEASE = lease("10.1.7.0/24", "192.168.64.7")
GOOD = View((LEASE,), may_remove=True)
CONFIG = parse_network_config('{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}', "test")
UPLINK = Uplink(2, "eth0", IPv4Address("192.168.64.7"), 24, 1500, Mac(bytes(6)))
NODE = Node((stack(CONFIG, UPLINK, "10.1.7.0/24", Mac(b"\2\0\0\0\0\7")),))


@dataclass
class Parts:
    """The edges of a loop; `follow` is what a short pass answers, `whole` a whole one."""

    follow: Callable[[], Outcome | None] = Outcome
    whole: Callable[[], Outcome] = Outcome
    look: Callable[[], None] = lambda: None
    view: View = GOOD
    shorts: int = 0
    wholes: int = 0
    firewall: Any = field(default_factory=lambda: SimpleNamespace(lifetime=60.0))

    def __post_init__(self) -> None:
        self.source = self
        self.lease = LEASE
        self.report = SimpleNamespace(write=lambda *_, **__: None)
        self.kernel = self
        self.reconciler = SimpleNamespace(follow=self._follow, run=self._run)

    def ready(self) -> None:
        pass

    def _follow(self, _leases: object) -> Outcome | None:
        self.shorts += 1
        return self.follow()

    def _run(self, *_: object, may_delete: bool) -> Outcome:
        self.wholes += 1
        return self.whole()


class Still(Loop):
    """A loop whose uplink stays as it is."""

    def _follow_uplink(self, seen: Any) -> None:
        pass


def run(
    parts: Parts, *events: Callable[[Wake, Parts], None], options: Options | None = None
) -> tuple[Still, list[bool]]:
    """Run a loop through these events; return it, and whether it was ready before each and at the end."""
    wake, stop, left, ready = Wake(), Stop(), list(events), list[bool]()
    loop = Still(options or Options(subnet_file=Path("/dev/null/subnet.env")), NODE, parts)  # type: ignore[arg-type]  # of edges' shape

    def wait(_seconds: float) -> None:
        ready.append(loop.ready)
        if left:
            left.pop(0)(wake, parts)
        else:
            stop.set()

    wake.wait = wait  # type: ignore[method-assign]
    loop.run(stop, wake)
    return loop, ready


def passes(parts: Parts, *events: Callable[[Wake, Parts], None]) -> tuple[int, int]:
    """Return how many whole and short passes follow the first one, with these events."""
    run(parts, *events)
    return parts.wholes - 1, parts.shorts


def leases(wake: Wake, parts: Parts) -> None:
    parts.view = replace(parts.view)
    wake.for_leases()


def kernel(wake: Wake, _parts: Parts) -> None:
    wake.for_all()


def doubt(wake: Wake, parts: Parts) -> None:
    parts.view = replace(GOOD, may_remove=False, doubt="etcd was wiped")
    wake.for_leases()


def poison(wake: Wake, parts: Parts) -> None:
    parts.view = replace(GOOD, skipped=(Skipped("/subnets/x", "no subnet"),))
    wake.for_leases()


def raiser(error: BaseException) -> Callable[[], Any]:
    def fail() -> None:
        raise error

    return fail


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Options:
    """Options with a subnet.env that can be written."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    return Options(subnet_file=tmp_path / "subnet.env")


def test_leases_alone_take_a_short_pass() -> None:
    assert passes(Parts(), leases, leases) == (0, 2)


def test_a_wake_without_new_leases_takes_none() -> None:
    assert passes(Parts(), lambda wake, _: wake.for_leases()) == (0, 0)


@pytest.mark.parametrize("event", [kernel, doubt, poison])
def test_anything_else_takes_a_whole_one(event: Callable[[Wake, Parts], None]) -> None:
    assert passes(Parts(), event) == (1, 0)


def test_a_kernel_event_is_not_lost_among_those_of_leases() -> None:
    def both(wake: Wake, parts: Parts) -> None:
        kernel(wake, parts)
        leases(wake, parts)

    assert passes(Parts(), both, leases) == (1, 1)


@pytest.mark.parametrize("answer", [lambda: None, raiser(KernelError("no")), raiser(BpfError("no"))])
def test_a_short_pass_that_fails_is_followed_by_a_whole_one_at_once(answer: Any) -> None:
    assert passes(Parts(answer), leases) == (1, 1)


def test_a_change_of_the_kernel_is_not_forgotten_while_there_are_no_leases() -> None:
    def later(wake: Wake, parts: Parts) -> None:
        parts.view = GOOD

    parts = Parts(view=View())
    run(parts, kernel, later)
    assert parts.wholes == 1


def test_doubt_that_ends_takes_a_whole_pass_when_the_reconciler_says_so() -> None:
    def believed(wake: Wake, parts: Parts) -> None:
        parts.view = replace(GOOD)
        parts.follow = lambda: None  # a pass that may not delete leaves nothing to start from
        wake.for_leases()

    assert passes(Parts(), doubt, believed) == (2, 1)


def test_a_flood_of_changes_is_answered_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr("time.thread_time", lambda: next(clock) * 0.4)  # so much CPU a pass
    assert passes(Parts(), *[kernel] * 20)[0] == 2


ERRORS = [
    KernelError("the kernel says no", 1),
    BpfError("bpf(2) says no", 1),
    ConfigError("a file", "x", "another"),
    OSError(24, "Too many open files"),
    UnicodeDecodeError("utf-8", b"\xfc", 0, 1, "invalid start byte"),
    RuntimeError("can't start new thread"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("step", ["look", "whole"])
def test_a_pass_survives_any_error(
    calm: Options, caplog: pytest.LogCaptureFixture, step: str, error: Exception
) -> None:
    def heals(wake: Wake, parts: Parts) -> None:
        setattr(parts, step, Outcome)
        wake.for_all()

    parts = Parts(**{step: raiser(error)})
    loop, ready = run(parts, kernel, heals, options=calm)
    assert ready == [False, False, True]
    assert loop.last == Outcome()
    said = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert sum(str(error) in record.getMessage() for record in said) <= 2, "said once, not at each pass"
    assert any(type(error).__name__ in one.getMessage() or str(error) in one.getMessage() for one in said)


def test_an_operator_who_wants_programs_hears_that_they_cannot_run() -> None:
    with pytest.raises(ProgramsRequired):
        run(Parts(whole=raiser(ProgramsRequired("verifier says no"))))


OWN = [
    LinkAddress("flannel.1", IPv4Interface("10.1.7.0/32")),
    Route(CONFIG.network, None, "flannel0"),
    Ruleset("iptables", "10.1.0.0/16", ("nat -A FLANNEL-POSTRTG -j MASQUERADE",)),
]
PARTS = [
    Route(IPv4Network("10.1.9.0/24"), IPv4Address("198.51.100.7"), "eth0"),
    Ruleset("iptables", "10.1.0.0/16", ("filter -A FLANNEL-FWD -s 10.1.0.0/16 -j ACCEPT",)),
    Sysctl("net/ipv6/conf/flannel.1/accept_ra", "0"),
]


@pytest.mark.parametrize("obj", OWN)
def test_a_node_is_not_ready_without_what_is_its_own(calm: Options, obj: Any) -> None:
    failed = Outcome(failures=[Failure(Put(obj), KernelError("no"))])

    def heals(wake: Wake, parts: Parts) -> None:
        assert not calm.subnet_file.exists(), "who waits for it starts pods"
        parts.whole = Outcome
        wake.for_all()

    def breaks(wake: Wake, parts: Parts) -> None:
        assert calm.subnet_file.exists()
        parts.whole = lambda: failed
        wake.for_all()

    _, ready = run(Parts(whole=lambda: failed), heals, breaks, options=calm)
    assert ready == [False, True, False]


@pytest.mark.parametrize("obj", PARTS)
def test_a_node_is_ready_whatever_fails_of_a_part(
    calm: Options, caplog: pytest.LogCaptureFixture, obj: Any
) -> None:
    failed = Outcome(failures=[Failure(Put(obj), KernelError("no such peer"))])
    _, ready = run(Parts(whole=lambda: failed), options=calm)
    assert ready == [True]
    assert calm.subnet_file.exists()
    assert "no such peer" in caplog.text


def test_a_node_whose_file_cannot_be_written_is_not_ready() -> None:
    _, ready = run(Parts(), options=Options(subnet_file=Path("/proc/nope/subnet.env")))
    assert ready == [False]


def test_ready_is_told_once_and_after_the_file(calm: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []
    monkeypatch.setattr(
        supervisor,
        "notify",
        lambda *lines: told.append(calm.subnet_file.exists()) if "READY=1" in lines else None,
    )
    run(Parts(), kernel, kernel, options=calm)
    assert told == [True]


def test_many_problems_are_counted_and_not_all_written(
    calm: Options, caplog: pytest.LogCaptureFixture
) -> None:
    failures = [Failure(Put(PARTS[0]), KernelError(f"peer {number}")) for number in range(4000)]
    run(Parts(whole=lambda: Outcome(failures=failures)), kernel, options=calm)
    assert len(caplog.records) < 20
    assert "and 3990 more" in caplog.text
