from __future__ import annotations

import re

import pytest

from flannel_ebpf.base.regex import compile_go


@pytest.mark.parametrize(
    ("pattern", "found", "missed"),
    [
        ("^[[:alpha:]]+[[:digit:]]$", "eth0", "eth0.1"),
        ("^[^[:digit:]]+$", "lo", "eth0"),
        ("^[[:alnum:]_.-]+$", "br-lan.7", "br lan"),
        (r"\Aeth0\z", "eth0", "eth0\n"),
        (r"^[\[:]$", ":", "a"),
        (r"\d+", "eth0", "eth\u0663"),
        (r"\\z", "\\z", "z"),
        ("(?i)^ETH", "eth0", "veth0"),
        ("^[[:xdigit:][:space:]]+$", "c0 ff", "go"),
    ],
)
def test_go_and_python_mean_the_same(pattern: str, found: str, missed: str) -> None:
    expression = compile_go(pattern)
    assert expression.search(found)
    assert not expression.search(missed)


@pytest.mark.parametrize("pattern", ["(", "[[:letters:]]", "*", "a**"])
def test_what_go_refuses_is_refused(pattern: str) -> None:
    with pytest.raises(re.error):
        compile_go(pattern)
