"""Whether somebody watches packets (`flannel-ebpf monitor`): a file that asks for programs that tell.

It says until when, so that a watcher who is killed does not leave them telling for ever.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from flannel_ebpf.base.family import Network
from flannel_ebpf.host.files import read_small, replace_file
from flannel_ebpf.host.places import place

SUFFIX = ".monitor.json"


def ask(state_dir: Path, network: Network, sample: int, seconds: float) -> None:
    """Ask for one packet in `sample` for so long; asking again goes on. Raises OSError."""
    text = json.dumps({"sample": sample, "until": _now() + seconds})
    replace_file(place(state_dir, network, SUFFIX), text)


def end(state_dir: Path, network: Network) -> None:
    """Ask for nothing any more."""
    place(state_dir, network, SUFFIX).unlink(missing_ok=True)


def sample(state_dir: Path, network: Network) -> int:
    """Return what is asked for now: one packet in so many, 0 for none."""
    try:
        asked = json.loads(read_small(place(state_dir, network, SUFFIX)))
        return max(int(asked["sample"]), 0) if asked["until"] > _now() else 0
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
