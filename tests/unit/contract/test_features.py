"""The names of the kernel's features."""

from __future__ import annotations

import pytest

from flannel_ebpf.contract import features
from flannel_ebpf.contract.enums import Cap


def test_each_feature_has_a_name_and_what_becomes_without_it() -> None:
    assert list(features.WITHOUT) == list(Cap)
    assert features.names(features.together(features.NAMES)) == list(features.NAMES)


def test_names_are_in_order_and_only_of_those_given() -> None:
    caps = Cap.COARSE_CLOCK | Cap.REDIRECT_PEER
    assert features.names(caps) == ["redirect_peer", "coarse_clock"]
    assert features.together(["coarse_clock", "redirect_peer"]) == caps
    assert features.names(~caps) == ["redirect_neigh", "encap_l2_eth", "decap_l4_udp", "csum_level"]


def test_a_name_that_is_none() -> None:
    with pytest.raises(KeyError):
        features.together(["warp_drive"])
