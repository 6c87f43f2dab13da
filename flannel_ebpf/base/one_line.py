"""What strangers wrote, made fit for a log or a terminal."""

from __future__ import annotations


def one_line(text: str, longest: int) -> str:
    r"""Return `text` with its control characters written out (\x1b); of more than `longest`, the beginning.

    A key in etcd may have any octets, and a megabyte of them; a terminal obeys some.
    """
    shown = text if len(text) <= longest else f"{text[:longest]}... ({len(text)} characters)"
    if shown.isprintable():
        return shown
    return "".join(it if it.isprintable() else it.encode("unicode_escape").decode() for it in shown)
