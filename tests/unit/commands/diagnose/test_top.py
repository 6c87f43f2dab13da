from __future__ import annotations

from flannel_ebpf.commands.diagnose.top import rates, together


def _peer(packets: int, size: int) -> dict[str, float]:
    return {"tx_packets": packets, "tx_bytes": size, "rx_packets": 0, "rx_bytes": 0}


def test_rates_are_differences_a_second_the_busiest_first() -> None:
    before = {"peers": ({("a",): _peer(10, 100), ("b",): _peer(5, 50), ("c",): _peer(1, 1)}, {})}
    labels = {(name,): {"subnet": name} for name in "abcd"}
    counters = {
        ("a",): _peer(20, 300),
        ("b",): _peer(25, 1050),
        ("c",): _peer(1, 1),
        ("d",): _peer(9, 9),  # new: no former value, so no rate yet
    }
    rows = rates(before, {"peers": (counters, labels)}, 2.0)["peers"]
    assert [(row["subnet"], row["tx_packets"], row["tx_bytes"]) for row in rows] == [
        ("b", 10, 500),
        ("a", 5, 100),
    ]


def test_a_counter_that_began_anew_is_no_negative_rate() -> None:
    now = {"reasons": ({("x", "h"): {"packets": 3}}, {("x", "h"): {"reason": "x"}})}
    assert rates({"reasons": ({("x", "h"): {"packets": 9}}, {})}, now, 1.0) == {"reasons": []}


def test_reasons_are_those_of_both_families() -> None:
    four, six = {"FAST_VXLAN": {"from_pod": 3, "from_peer": 1}}, {"FAST_VXLAN": {"from_pod": 4}}
    assert together([four, six]) == {
        ("fast_vxlan", "from_pod"): {"packets": 7},
        ("fast_vxlan", "from_peer"): {"packets": 1},
    }
