"""Small files of ours where others may have put anything: nobody waits for one, none is half written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

LARGEST = 1 << 24
"""Octets of a file that is read; the relay of 65,536 peers has a fifth."""


def read_small(path: Path, errors: str = "strict") -> str:
    """Return a file's text. Raises OSError, also for what is no regular file or too large, and ValueError.

    A FIFO would be waited for, a device may have no end.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        kind = os.fstat(descriptor).st_mode
        if stat.S_ISDIR(kind):
            raise OSError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        text = b""
        while len(text) <= LARGEST and (more := os.read(descriptor, LARGEST)):
            text += more
    finally:
        os.close(descriptor)
    if len(text) > LARGEST:
        raise OSError(errno.EFBIG, f"more than {LARGEST} octets", str(path))
    return text.decode("utf-8", errors)


def replace_file(path: Path, text: str, mode: int = 0o644) -> None:
    """Replace a file in one step, so that a reader sees the old text or the new one; raises OSError.

    The new file's name is always the same one, so that a process which is killed leaves at most one behind.
    """
    new = path.with_name(f".{path.name}.new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            os.fchmod(descriptor, mode)  # a umask must not matter
        new.rename(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
