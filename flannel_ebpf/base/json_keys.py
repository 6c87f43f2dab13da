"""JSON objects as Go's encoding/json reads them: keys in any letter case, of repeated ones the last."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.family import Address, Family


class Keys:
    """Typed access to one JSON object, blind to letter case, with errors that say where a key stands.

    A null counts as not given. Each method raises ConfigError for a value of another kind.
    """

    def __init__(self, values: dict[str, Any], source: str, parent: str = "") -> None:
        self._values = values
        self._source = source
        self._parent = parent

    def __contains__(self, key: str) -> bool:
        return key.casefold() in self._values

    def error(self, key: str, expected: str) -> ConfigError:
        """Return the error that says what would be right under a key."""
        return ConfigError(
            f"{self._source}, key {self._parent}{key}", self._values.get(key.casefold()), expected
        )

    def _value(self, key: str, kind: type, expected: str) -> Any:
        value = self._values.get(key.casefold())
        if value is not None and type(value) is not kind:  # exactly: True is an int to isinstance
            raise self.error(key, expected)
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._value(key, bool, "true or false, without quotes")
        return default if value is None else bool(value)

    def number(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number in a range, both ends included."""
        expected = f"a whole number from {low} to {high}, without quotes"
        value = self._value(key, int, expected)
        if value is None:
            return default
        if not low <= value <= high:
            raise self.error(key, expected)
        return int(value)

    def text(self, key: str) -> str | None:
        """Return a text, None for no text."""
        value = self._value(key, str, "a text in quotes")
        return None if value is None else str(value)

    def address(self, key: str, family: Family, example: str) -> Address | None:
        """Return an address; None also for the unspecified one, which means absent in Go."""
        text = self.text(key)
        if text is None:
            return None
        try:
            if "%" in text:
                raise ValueError  # a zone, which Python would take
            address = family.address(text)
        except ValueError as error:
            raise self.error(key, f"an {family} address such as {example}") from error
        return None if int(address) == 0 else address

    def object(self, key: str) -> Keys:
        """Return the object under a key, an empty one when nothing is there."""
        value = self._value(key, dict, 'an object such as {"Type": "vxlan"}')
        return Keys(value or {}, self._source, f"{key}.")


def read_object(text: str, source: str) -> Keys:
    """Read the JSON object that `text` from `source` is; raises ConfigError."""
    expected = 'a JSON object such as {"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}'
    try:
        values = json.loads(text, object_pairs_hook=_fold, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ConfigError(source, _shortened(text), f"{expected} ({error})") from error
    if not isinstance(values, dict):
        raise ConfigError(source, _shortened(text), expected)
    return Keys(values, source)


def _fold(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Keep the last value of each key that is not null, whatever its letter case (Go's encoding/json)."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        if value is not None or key.casefold() not in values:
            values[key.casefold()] = value
    return values


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _shortened(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."
