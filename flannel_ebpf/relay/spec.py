"""The relay's settings: one line says a flag's name, default and meaning, to the daemon and to the relay."""

from __future__ import annotations

import argparse
import sys
from dataclasses import MISSING, dataclass, fields
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from flannel_ebpf.base.options import SourceCheckChoice, flag, flags_of


@dataclass(frozen=True, slots=True)
class RelaySpec:
    """The relay's settings; a change of any needs a new process, peers do not."""

    folder: Path = flag(MISSING, "run-time folder: peers, counters, lock, log")
    tun: str = flag(MISSING, "TUN device, made if missing")
    bind: IPv4Address = flag(MISSING, "public address of this node")
    port: int = flag(MISSING, "UDP port, here and at every peer")
    mtu: int = flag(MISSING, "of the TUN: the uplink's less 28")
    address: IPv4Address = flag(MISSING, "own subnet's network address")
    network: IPv4Network = flag(MISSING, "the whole overlay network")
    source_check: SourceCheckChoice = flag("drop", "packets of a wrong source")
    batch: bool = flag(
        True, "UDP_SEGMENT and UDP_GRO; off where BPF programs carry datagrams, which GRO would merge"
    )
    queues: int = flag(1, "TUN queues, each with two processes")

    def command(self) -> list[str]:
        """Return the command line of a relay with these settings."""
        words = {one.name: getattr(self, one.name) for one in fields(self)}
        flags = [text for name, value in words.items() for text in (_flag(name), _text(value))]
        return [sys.executable, "-P", "-m", "flannel_ebpf.relay", *flags]

    @classmethod
    def parse(cls, arguments: list[str] | None = None) -> RelaySpec:
        """Read a command line; a wrong one ends the process, as argparse does."""
        parser = argparse.ArgumentParser(prog="python -m flannel_ebpf.relay", description=__doc__)
        for one in flags_of(cls):
            given = {"required": True} if one.default is MISSING else {"default": one.default}
            choices = get_args(one.kind) if get_origin(one.kind) is Literal else None
            kind = _truth if one.kind is bool else str if choices else one.kind
            parser.add_argument(_flag(one.name), type=kind, choices=choices, help=one.about.text, **given)
        return cls(**vars(parser.parse_args(arguments)))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _text(value: Any) -> str:
    return ("off", "on")[value] if isinstance(value, bool) else str(value)


def _truth(text: str) -> bool:
    if text not in {"on", "off"}:
        raise ValueError(text)
    return text == "on"
