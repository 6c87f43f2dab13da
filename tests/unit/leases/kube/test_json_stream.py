"""A list read item by item, however its bytes arrive."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.leases.kube.json_stream import JsonStream

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def read(body: bytes, size: int) -> tuple[list[Any], dict[str, Any]]:
    """Read a body that comes in pieces of `size` bytes."""
    source = io.BytesIO(body)
    stream = JsonStream(lambda _: source.read(size))
    return list(stream.items("items")), stream.fields


@given(
    st.lists(JSON, max_size=5),
    st.dictionaries(st.text(), JSON, max_size=4),
    st.integers(1, 40),
    st.booleans(),
)
def test_it_reads_what_json_reads(items: list[Any], rest: dict[str, Any], size: int, last: bool) -> None:
    rest.pop("items", None)
    whole = {**rest, "items": items} if last else {"items": items, **rest}
    for indent in (None, 2):
        body = json.dumps(whole, ensure_ascii=False, indent=indent).encode() + b"\n"
        assert read(body, size) == (items, rest)


def test_a_list_that_is_null_has_no_items() -> None:
    assert read(b'{"items": null, "metadata": {}}', 7) == ([], {"items": None, "metadata": {}})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b'{"items": [1, 2',
        b'{"items": [1 2]}',
        b'{"items" [1]}',
        b'{"items": [1]',
        b"<html>",
        b'{"items": [1,, 2]}',
    ],
)
def test_what_is_no_list_is_an_error_and_no_hang(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"belongs|middle"):
        read(body, 5)
