"""`flannel-ebpf monitor`: packets as they pass our programs, each with what became of it and why."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from flannel_ebpf.base.errors import ConfigError, FlannelError
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose.console import NothingHereError, console, json_flag, print_line
from flannel_ebpf.commands.diagnose.networks import Here, network_flag, networks
from flannel_ebpf.commands.diagnose.readings import PROTOCOLS, end
from flannel_ebpf.commands.diagnose.tables import device_names
from flannel_ebpf.commands.flags import node_flags, options_from
from flannel_ebpf.commands.values import AnyAddress
from flannel_ebpf.contract.enums import Reason
from flannel_ebpf.contract.learned import Event
from flannel_ebpf.host import watching
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.kernel.programs.readout import maps_of

LEASE = 10.0
"""Seconds for which the daemon is asked to have the programs tell; asked anew while we are here."""
_PAUSE = 0.05
_READY = 15.0  # seconds for the daemon to load them

_FLAGS = ((0x02, "S"), (0x01, "F"), (0x04, "R"), (0x08, "P"), (0x10, "."))
_COLOURS = {"fast": "green", "drop": "bold red", "lear": "yellow"}


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which packets are shown; None: any."""

    address: Address | None = None
    port: int | None = None
    reason: str = ""

    def __call__(self, event: Event) -> bool:
        """Say whether this one is."""
        return (
            (self.address is None or self.address in (event.source, event.target, event.outer))
            and (self.port is None or self.port in (event.source_port, event.target_port))
            and event.reason.name.lower().startswith(self.reason)
        )


@click.command(short_help="Show packets as they pass, each with its reason.")
@node_flags
@network_flag
@click.option("--address", type=AnyAddress(), help="From or to this pod or node only.")
@click.option("--port", type=click.IntRange(1, 65_535), help="From or to this port only.")
@click.option("--reason", default="", help="Only reasons that begin so, such as drop or learn.")
@click.option(
    "--sample", type=click.IntRange(min=1), default=1, show_default=True, help="One packet in so many."
)
@click.option("--count", type=click.IntRange(min=0), default=0, help="End after so many; 0: go on.")
@click.option("--seconds", type=click.FloatRange(min=0), default=0, help="End after so long; 0: go on.")
@json_flag
def monitor(
    only: Network | None,
    address: Address | None,
    port: int | None,
    reason: str,
    sample: int,
    count: int,
    seconds: float,
    as_json: bool,
    **values: Any,
) -> None:
    """Show packets that our programs look at, and why each goes where it goes (docs/packet-path.md).

    While it runs the daemon has programs loaded that tell; a busy node wants --sample. Nothing is lost by it,
    and nothing is left of it afterwards. Packets that the programs do not see are not shown.
    """
    options = options_from(values)
    wanted = Wanted(address, port, reason.lower())
    if reason and not any(one.name.lower().startswith(wanted.reason) for one in Reason):
        raise click.BadParameter(
            f"no reason begins with {reason!r}: see docs/packet-path.md.", param_hint="--reason"
        )
    here = networks(options, only)[0]
    if not here.pid:
        raise NothingHereError(
            f"no daemon runs for {here.network}, and it is the one who loads programs that tell"
        )
    shown = 0
    deadline = time.monotonic() + seconds if seconds else float("inf")
    names = device_names()
    show = _printer(as_json, names)
    with _watched(options, here, sample) as (queues, again):
        while time.monotonic() < deadline:
            again()
            for event in (one for queue in queues for one in _taken(queue)):
                if wanted(event):
                    show(event)
                    shown += 1
                    if count and shown >= count:
                        return
            time.sleep(_PAUSE)


@contextmanager
def _watched(options: Options, here: Here, sample: int) -> Iterator[tuple[list[Map], Callable[[], None]]]:
    """Have the programs tell; yields each family's queue, and what keeps them telling."""
    asked_at = 0.0

    def again() -> None:
        nonlocal asked_at
        if time.monotonic() > asked_at + LEASE / 3:
            watching.ask(options.state_dir, here.network, sample, LEASE)
            asked_at = time.monotonic()

    try:
        again()
    except OSError as error:
        raise ConfigError(
            "--state-dir", str(options.state_dir), f"a folder to write in ({error.strerror})"
        ) from error
    try:
        _poke(here.pid)
        with ExitStack() as opened:
            paths = _queues_of(options.bpf_pin_root, here.network)
            queues = [opened.enter_context(Map.open(path)) for path in paths]
            for queue in queues:
                while queue.pop() is not None:
                    pass  # an earlier watcher's
            yield queues, again
    finally:
        watching.end(options.state_dir, here.network)
        _poke(here.pid)


def _queues_of(root: Path, network: Network) -> list[Path]:
    deadline = time.monotonic() + _READY
    while time.monotonic() < deadline:
        queues = [folder / "fl_events" for folder in maps_of(network, root).values()]
        if queues and all(queue.exists() for queue in queues):
            return queues
        time.sleep(_PAUSE)
    raise FlannelError(
        "the programs that run here cannot tell: packets take the kernel path, or it is an old daemon"
    )


def _poke(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGUSR1)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise FlannelError(f"process {pid} is not ours to ask: this takes root") from error


def _taken(queue: Map) -> Iterator[Event]:
    while (raw := queue.pop()) is not None:
        yield Event.unpack(raw)


def _printer(as_json: bool, names: dict[int, str]) -> Callable[[Event], None]:
    out = console()

    def show(event: Event) -> None:
        if as_json:
            print_line(plain(event, names))
            return
        reason = event.reason.name.lower()
        text = Text(f"{event.at / 1e9 % 1000:7.3f} {event.hook.name.lower():<9} ")
        text.append(f"{reason:<17} ", _COLOURS.get(reason[:4], ""))
        out.print(text.append(told(event)))

    return show


def told(event: Event) -> str:
    """Return addresses, ports, flags and length of a packet, much as tcpdump would."""
    if not event.proto:
        return f"another protocol, {event.len}"
    flags = "".join(letter for bit, letter in _FLAGS if event.tcp_flags & bit)
    outer = f" from {event.outer}" if event.reason.name.startswith("DROP") and int(event.outer) else ""
    kind = PROTOCOLS.get(event.proto, str(event.proto))
    source, target = (event.source, event.source_port), (event.target, event.target_port)
    ends = " > ".join(end(*one) if event.proto in (6, 17) else str(one[0]) for one in (source, target))
    return f"{kind} {ends}{f' [{flags}]' if flags else ''} {event.len}{outer}"


def plain(event: Event, names: dict[int, str]) -> dict[str, Any]:
    """Return an event as plain values."""
    return {
        "at": event.at / 1e9,
        "device": names.get(event.ifindex, ""),
        "hook": event.hook.name.lower(),
        "reason": event.reason.name.lower(),
        "protocol": PROTOCOLS.get(event.proto, str(event.proto)),
        "source": str(event.source),
        "target": str(event.target),
        "source_port": event.source_port,
        "target_port": event.target_port,
        "tcp_flags": event.tcp_flags,
        "outer": str(event.outer) if int(event.outer) else "",
        "length": event.len,
    }
