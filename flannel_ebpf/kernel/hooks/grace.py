"""RCU grace periods while many programs come onto hooks.

At each change of a tcx hook the kernel waits for a grace period (tcx_entry_sync), about 10 ms, and holds rtnl
meanwhile, so that threads do not help: 200 pods at once would take four seconds, in which nobody configures a
device. Expedited periods take 0.4 ms (rcupdate.rcu_expedited in Documentation/admin-guide/kernel-parameters);
they interrupt every CPU once, so they are asked for only while many changes wait.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

log = logging.getLogger(__name__)

MANY = 32
"""Changes from which on it is worth while: one or two pods are none of it."""

_SWITCH = Path("/sys/kernel/rcu_expedited")


@contextmanager
def hurried(changes: int, mark: Path) -> Iterator[None]:
    """Have the kernel hurry during the block, if there are many changes and it lets us.

    `mark` is a file that stands while the switch is ours, for a process that is killed in the middle.
    """
    if changes < MANY or not _take(mark):
        yield
        return
    try:
        yield
    finally:
        give_back(mark)


def give_back(mark: Path) -> None:
    """Set the switch back, if `mark` says that we have set it: also what a killed predecessor left."""
    if not mark.exists():
        return
    try:
        _SWITCH.write_text("0")
        mark.unlink()
    except OSError as error:
        log.warning("%s cannot be set back to 0: %s", _SWITCH, error.strerror)


def _take(mark: Path) -> bool:
    try:
        if _SWITCH.read_text().strip() != "0":
            return False
        mark.touch()
        _SWITCH.write_text("1")
    except OSError:  # read-only, as in a container
        with suppress(OSError):
            mark.unlink(missing_ok=True)
        return False
    return True
