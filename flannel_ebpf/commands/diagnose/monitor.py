"""`flannel-ebpf monitor`: packets as they pass our programs, each with what became of it and why."""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.text import Text

from flannel_ebpf.base.errors import BpfError, ConfigError, FlannelError
from flannel_ebpf.base.family import Address, Network
from flannel_ebpf.base.options import Options
from flannel_ebpf.commands.diagnose.console import NothingHereError, console, json_flag, print_line
from flannel_ebpf.commands.diagnose.monitored import Packet, Wanted, plain, told
from flannel_ebpf.commands.diagnose.networks import Here, families, network_flag, networks
from flannel_ebpf.commands.diagnose.tables import device_names
from flannel_ebpf.commands.flags import node_flags, options_from
from flannel_ebpf.commands.values import AnyAddress
from flannel_ebpf.contract.enums import Reason
from flannel_ebpf.contract.learned import Event
from flannel_ebpf.host import watching
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.kernel.netlink.links import read_links, vxlan_link
from flannel_ebpf.kernel.netlink.route_socket import RouteSocket
from flannel_ebpf.kernel.programs import drops
from flannel_ebpf.kernel.programs.readout import maps_of

LEASE = 10.0
"""Seconds for which the daemon is asked to have the programs tell; asked anew while we are here."""
_PAUSE = 0.05
_READY = 15.0  # seconds for the daemon to load them

_COLOURS = defaultdict(str, fast="green", drop="bold red", lear="yellow")


@click.command(short_help="Show packets as they pass, each with its reason.")
@node_flags
@network_flag
@click.option("--address", type=AnyAddress(), help="From or to this pod or node only.")
@click.option("--port", type=click.IntRange(1, 65_535), help="From or to this port only.")
@click.option("--reason", default="", help="Only reasons that begin so, such as drop or learn.")
@click.option(
    "--kernel-drops/--no-kernel-drops", default=True, help="Also what the kernel drops, as it says why."
)
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
    kernel_drops: bool,
    sample: int,
    count: int,
    seconds: float,
    as_json: bool,
    **values: Any,
) -> None:
    """Show packets that our programs look at, and why each goes where it goes (docs/packet-path.md).

    While it runs the daemon has programs loaded that tell; a busy node wants --sample. Nothing is lost by it,
    and nothing is left of it afterwards. Packets that the programs do not see are shown only when the kernel
    drops them in this network namespace, with its own reason (Linux 5.17).
    """
    options = options_from(values)
    wanted = Wanted(address, port, reason.lower())
    if reason and not any(one.startswith(wanted.reason) for one in _every_reason()):
        raise click.BadParameter(
            f"no reason begins with {reason!r}: see docs/packet-path.md.", param_hint="--reason"
        )
    here = networks(options, only)[0]
    if not here.pid:
        raise NothingHereError(
            f"no daemon runs for {here.network}, and it is the one who loads programs that tell"
        )
    wanted = replace(wanted, dual=len(families(here)) > 1)
    shown = 0
    deadline = time.monotonic() + seconds if seconds else float("inf")
    names = device_names()
    show = _printer(as_json, names)
    with _watched(options, here, sample) as (queues, again), _drops(here, options, kernel_drops) as dropped:
        while time.monotonic() < deadline:
            again()
            seen = [Packet.of_event(event) for queue in queues for event in _taken(queue)]
            for packet in [*seen, *map(Packet.of_drop, dropped())]:
                if wanted(packet):
                    show(packet)
                    shown += 1
                    if count and shown >= count:
                        return
            time.sleep(_PAUSE)


@contextmanager
def _drops(here: Here, options: Options, asked: bool) -> Iterator[Callable[[], list[drops.Drop]]]:
    """Yield what returns the kernel's drops; nothing where the kernel does not tell, and says so."""
    with ExitStack() as opened:
        found: Callable[[], list[drops.Drop]] = list
        if asked:
            every = [one.network for one in families(here)]
            try:
                watching = drops.watch(every, _port(here), options.bpf_objects, options.bpf_pin_root)
                found = opened.enter_context(watching)
            except BpfError as error:
                click.echo(f"the kernel's own drops are not shown: {error}", err=True)
        yield found


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


def _printer(as_json: bool, names: dict[int, str]) -> Callable[[Packet], None]:
    out = console()

    def show(packet: Packet) -> None:
        if as_json:
            print_line(plain(packet, names))
            return
        text = Text(f"{packet.at / 1e9 % 1000:7.3f} {packet.hook:<9} ")
        text.append(f"{packet.reason:<17} ", _COLOURS["drop" if packet.is_drop else packet.reason[:4]])
        out.print(text.append(told(packet)))

    return show


def _every_reason() -> Iterator[str]:
    """Yield our reasons, then the kernel's."""
    yield from (one.name.lower() for one in Reason)
    yield from drops.reasons().values()


def _port(here: Here) -> int:
    """Return the port of the network's vxlan device, 0 when it has none."""
    with RouteSocket() as netlink:
        devices = [vxlan_link(link) for link in read_links(netlink).values()]
    return next((one.port for one in devices if one and one.name == here.report.get("overlay")), 0)
