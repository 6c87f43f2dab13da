"""Log lines on stderr in klog's form or as JSON, one line an event."""

from __future__ import annotations

import json
import logging
import os
import select
import stat
import time
from typing import TextIO

from flannel_ebpf.base.one_line import one_line
from flannel_ebpf.base.options import LogFormat

LONGEST = 2000
"""Characters of a line, or of a message in JSON: more is what a stranger wrote into etcd."""

_LETTERS = {"DEBUG": "I", "CRITICAL": "F"}


class KlogFormatter(logging.Formatter):
    """`I1121 03:02:44.123456   1234 daemon.py:57] message`, local time; a trace stays on the same line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without its end."""
        return one_line(super().format(record), 1 << 14)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Put klog's header before the message."""
        letter = _LETTERS.get(record.levelname, record.levelname[0])
        stamp = time.strftime("%m%d %H:%M:%S", time.localtime(record.created))
        micros = int(record.created % 1 * 1_000_000)
        place = f"{record.process:7d} {record.filename}:{record.lineno}"
        return f"{letter}{stamp}.{micros:06d} {place}] {one_line(record.message, LONGEST)}"


class JsonFormatter(logging.Formatter):
    """`{"ts": "2026-11-21T03:02:44.123456Z", "level": "info", "msg": ...}`, UTC; a trace has its own key."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line without its end."""
        micros = int(record.created % 1 * 1_000_000)
        line = {
            "ts": f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{micros:06d}Z",
            "level": record.levelname.lower(),
            "msg": one_line(record.getMessage(), LONGEST),
            "caller": f"{record.filename}:{record.lineno}",
            "pid": record.process,
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class UnblockedHandler(logging.StreamHandler[TextIO]):
    """Writes where it can at once, else drops the line and counts it: who reads the log must not stop us.

    A pipe that is ready takes PIPE_BUF octets at once, so no line of its is longer.
    """

    _lost = 0

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, if somebody takes it."""
        try:
            if not select.select([], [self.stream], [], 0)[1]:
                self._lost += 1
                return
            lost, self._lost = self._lost, 0
            line = self.format(record).encode(errors="backslashreplace")
            told = f" ({lost} lines before were lost: nobody read them)".encode() if lost else b""
            os.write(self.stream.fileno(), line[: self._longest()] + told + b"\n")
        except (OSError, ValueError):  # closed, full disk: there is nobody to tell
            self._lost += 1

    def _longest(self) -> int:
        is_pipe = stat.S_ISFIFO(os.fstat(self.stream.fileno()).st_mode)
        return select.PIPE_BUF - 100 if is_pipe else 1 << 16


_FORMATTERS: dict[LogFormat, type[logging.Formatter]] = {"klog": KlogFormatter, "json": JsonFormatter}


def log_to_stderr(verbosity: int, form: LogFormat = "klog") -> None:
    """Send this program's log to stderr, from 1 on with details; of libraries only what is wrong.

    pyroute2 alone would write a hundred lines a second: every message of netlink.
    """
    handler = UnblockedHandler()
    handler.setFormatter(_FORMATTERS[form]())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("flannel_ebpf").setLevel(logging.DEBUG if verbosity >= 1 else logging.INFO)
