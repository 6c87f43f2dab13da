"""What strangers wrote is shown on one line, bounded, and moves no cursor."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.base.errors import ConfigError
from flannel_ebpf.base.one_line import one_line


def test_what_is_fit_stays_as_it_is() -> None:
    assert one_line("10.1.5.0-24: naïve ✓", 50) == "10.1.5.0-24: naïve ✓"


def test_control_characters_are_written_out() -> None:
    assert one_line("a\x1b[2Jb\7\n\u202e\u2028", 50) == r"a\x1b[2Jb\x07\n\u202e\u2028"


def test_of_a_long_text_the_beginning_is_shown() -> None:
    assert one_line("x" * 1_000_000, 3) == "xxx... (1000000 characters)"


@given(st.text())
def test_any_text_is_printable_and_bounded(text: str) -> None:
    shown = one_line(text, 10)
    assert shown.isprintable()
    assert len(shown) <= 10 * 10 + len("... (10000 characters)")


def test_an_error_says_what_would_be_right_however_long_the_value() -> None:
    assert str(ConfigError("etcd key /x/config", "[" * 1_000_000, "a JSON object")) == (
        f"etcd key /x/config: '{'[' * 199}... (1000002 characters) cannot be used: a JSON object"
    )
