"""Conntrack's values beside a fast path that it does not see."""

from __future__ import annotations

import pytest

from flannel_ebpf.desired.bpf.conntrack import PATHS, wanted, warnings

DEFAULTS = {
    "tcp_be_liberal": "0",
    "tcp_ignore_invalid_rst": "0",
    "tcp_loose": "1",
    "tcp_timeout_unacknowledged": "300",
    "tcp_timeout_max_retrans": "300",
    "tcp_timeout_established": "432000",
    "udp_timeout": "30",
    "udp_timeout_stream": "120",
    "icmp_timeout": "30",
}


def values(**changes: str) -> dict[str, str]:
    return {f"net/netfilter/nf_conntrack_{name}": value for name, value in (DEFAULTS | changes).items()}


def test_all_are_looked_at() -> None:
    assert set(PATHS) == set(values())


def test_what_a_kernel_with_its_defaults_is_told() -> None:
    told = {one.path.rpartition("conntrack_")[2]: one.value for one in wanted(values())}
    assert told == {
        "tcp_be_liberal": "1",
        "tcp_ignore_invalid_rst": "1",
        "tcp_timeout_unacknowledged": "432000",
        "tcp_timeout_max_retrans": "432000",
    }
    assert all(one.lent for one in wanted(values()))


def test_longer_timeouts_stay() -> None:
    mine = values(tcp_timeout_unacknowledged="500000", tcp_timeout_established="432000")
    assert "tcp_timeout_unacknowledged" not in {one.path.rpartition("conntrack_")[2] for one in wanted(mine)}


def test_what_a_kernel_lacks_is_not_asked_of_it() -> None:
    old = {path: value for path, value in values().items() if "ignore_invalid_rst" not in path}
    assert not any("ignore_invalid_rst" in one.path for one in wanted(old))
    assert wanted({}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tcp_loose": "0"}, "net.netfilter.nf_conntrack_tcp_loose is 0"),
        ({"udp_timeout": "5"}, "nf_conntrack_udp_timeout is 5 s, and --revalidate 10 s"),
        ({"tcp_timeout_established": "10"}, "give --revalidate less than 10"),
    ],
)
def test_values_that_break_connections_are_said(changes: dict[str, str], said: str) -> None:
    [warning] = warnings(values(**changes), 10.0)
    assert said in warning
    assert warnings(values(), 10.0) == []
