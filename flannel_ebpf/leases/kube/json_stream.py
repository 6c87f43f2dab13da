"""Reads a long JSON list item by item, so that a cluster's nodes are never in memory all at once."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

CHUNK = 65_536
"""Bytes asked for at once; a node object is about 22,000."""

_SPACE = re.compile(r"[ \t\r\n]*")
_decode = json.JSONDecoder().raw_decode


class JsonStream:
    """The items of one JSON object's list, one at a time, and afterwards the object's other fields.

    `read` returns the next bytes of the body, at most as many as asked for, and b"" at its end. After
    `items("items")` has run out, `fields` holds every other field. Raises ValueError where the body is no
    such object or ends too early.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self._utf8 = codecs.getincrementaldecoder("utf-8")()
        self._text = ""
        self._at = 0
        self.fields: dict[str, Any] = {}

    def items(self, name: str) -> Iterator[Any]:
        """Yield the items of the field `name`."""
        self._expect("{")
        while self._next() != "}":
            field = self._value()
            self._expect(":")
            if field == name and self._next() == "[":
                yield from self._list()
            else:
                self.fields[field] = self._value()
            if self._next() != "}":
                self._expect(",")

    def _list(self) -> Iterator[Any]:
        self._expect("[")
        while self._next() != "]":
            yield self._value()
            if self._next() != "]":
                self._expect(",")
        self._expect("]")

    def _next(self) -> str:
        """Return the next character that is no space, without taking it."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]  # matches nothing too
            if self._at < len(self._text):
                return self._text[self._at]
            self._more()

    def _expect(self, character: str) -> None:
        found = self._next()
        if found != character:
            raise ValueError(f"{found!r} where {character!r} belongs")
        self._at += 1

    def _value(self) -> Any:
        """Take one value, which is whole when something stands behind it: a number may go on otherwise."""
        self._next()
        while True:
            try:
                value, end = _decode(self._text, self._at)
                if end < len(self._text):
                    self._at = end
                    return value
            except ValueError:
                pass  # the rest of it is still to come
            self._more()

    def _more(self) -> None:
        chunk = self._read(CHUNK)
        if not chunk:
            raise ValueError("the body ends in the middle")
        self._text = self._text[self._at :] + self._utf8.decode(chunk)
        self._at = 0
