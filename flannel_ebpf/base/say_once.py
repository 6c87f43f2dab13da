"""A trouble that lasts is said when it begins, not every time that it is met."""

from __future__ import annotations

import logging
from collections.abc import Collection

MOST = 20
"""Texts of one trouble that are said: those with a number or an address in them may never repeat."""


class SayOnce:
    """Warnings of one kind on `log`: each text once for as long as the trouble lasts."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._said: set[str] = set()

    def say(self, problem: str) -> None:
        """Warn, unless that was said since the trouble began; for whoever looks closely it is said again."""
        new = problem not in self._said and len(self._said) < MOST
        self._log.log(logging.WARNING if new else logging.DEBUG, "%s", problem, stacklevel=2)
        if new:
            self._said.add(problem)

    def only(self, problems: Collection[str]) -> None:
        """Warn of those that are new; every other one is over."""
        for problem in sorted(set(problems) - self._said):
            self._log.warning("%s", problem, stacklevel=2)
        self._said = set(problems)

    def over(self, words: str = "") -> None:
        """Note that the trouble is over, and say `words` if anything of it was said."""
        if self._said and words:
            self._log.info("%s", words, stacklevel=2)
        self._said.clear()
