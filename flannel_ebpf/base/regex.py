"""Regular expressions as flanneld's flags have them: Go's (RE2), read with Python's engine.

Both understand the same text but for what stands here. Python's look-arounds and back references, which RE2
refuses, are understood too.
"""

from __future__ import annotations

import re

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7F",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1F\x7F",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
"""Classes that stand inside brackets as `[:name:]` (RE2's syntax page)."""

_ELSEWHERE = re.compile(r"(?P<end>\\z)|(?P<keep>\\.)|\[:(?P<name>[a-z]+):\]", re.DOTALL)


def compile_go(pattern: str) -> re.Pattern[str]:
    """Return Go's expression `pattern` as Python's; raises re.error for one that cannot be read."""

    def python(match: re.Match[str]) -> str:
        if match["end"]:
            return r"\Z"
        if match["keep"]:
            return match["keep"]
        if match["name"] not in _POSIX:
            raise re.error(f"unknown class {match[0]}", pattern, match.start())
        return _POSIX[match["name"]]

    return re.compile(_ELSEWHERE.sub(python, pattern), re.ASCII)
