"""Whose a program is, asked of the kernel alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from flannel_ebpf.kernel.bpf import Program
from flannel_ebpf.kernel.hooks.ownership import is_foreign, name_in, name_of
from flannel_ebpf.kernel.programs.loader import OBJECTS, LoadRequest, ensure_loaded

pytestmark = pytest.mark.usefixtures("loads_here")


def test_programs_say_whose_they_are(request_: LoadRequest) -> None:
    """Pinned or not: by their name and the network, with which the constants of the real objects begin."""
    loaded = ensure_loaded(replace(request_, objects=OBJECTS, xdp=True))
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod", "fl_xdp"}
    for name, number in loaded.programs.items():
        assert name_in(request_.network, number) == name_of(number) == name
        assert name_in(IPv4Network("10.2.0.0/16"), number) == ""
        assert name_in(IPv4Network("10.1.0.0/17"), number) == ""
        assert not is_foreign(number)


def test_a_strangers_program_is_not_ours_whatever_its_name() -> None:
    with Program.load(bytes.fromhex("b7000000000000009500000000000000"), "fl_from_pod") as program:
        number = program.info().id
        assert name_in(IPv4Network("10.1.0.0/16"), number) == name_of(number) == ""
        assert is_foreign(number)


def test_a_program_that_is_gone_is_nobodys() -> None:
    assert name_in(IPv4Network("10.1.0.0/16"), 2**31 - 1) == name_of(2**31 - 1) == ""
    assert not is_foreign(2**31 - 1)
