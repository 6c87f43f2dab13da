"""Figures of a run: medians, ratios within rounds, targets, JSON there and back."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from perf.results import TARGETS, Series, Table, Target, from_json, ratio, to_json


def series(mode: str, *rounds: float, metric: str = "tcp_rr", lower: bool = False) -> Series:
    return Series(mode, metric, "k/s", lower, dict(enumerate(rounds)), Counter(FAST_VXLAN=7))


def table(*every: Series) -> Table:
    return {(one.mode, one.metric): one for one in every}


def test_median_is_not_the_mean() -> None:
    assert series("a", 1, 2, 90).median == 2


def test_no_round_has_no_median() -> None:
    assert series("a").median is None


def test_ratio_is_taken_within_rounds() -> None:
    # The machine was half as fast in the last two rounds; the ratio of the medians would be 1.
    assert ratio(series("a", 20, 10, 10), series("b", 10, 5, 5)) == 2
    assert ratio(series("a", 30, 20, 10), series("b", 10, 20, 30)) == 1


def test_ratio_leaves_out_rounds_that_one_side_lacks() -> None:
    one = series("a", 10, 10)
    other = Series("b", "tcp_rr", "k/s", rounds={1: 5.0, 2: 1000.0})
    assert ratio(one, other) == 2
    assert ratio(one, Series("b", "tcp_rr", "k/s", rounds={7: 1.0})) is None
    assert ratio(one, None) is None


@given(st.lists(st.floats(0.1, 1e6), min_size=1), st.floats(0.1, 100))
def test_ratio_does_not_see_how_fast_the_machine_is(rounds: list[float], factor: float) -> None:
    found = ratio(series("a", *(factor * one for one in rounds)), series("b", *rounds))
    assert found == pytest.approx(factor)


@pytest.mark.parametrize(
    ("target", "reached", "met"),
    [
        (Target("a", "tcp_rr", 1.25, "b"), 1.3, True),
        (Target("a", "tcp_rr", 1.31, "b"), 1.3, False),
        (Target("a", "tcp_rr", 1.3, "b", at_most=True), 1.3, True),
        (Target("a", "tcp_rr", 1.29, "b", at_most=True), 1.3, False),
        (Target("a", "tcp_rr", 14), 13.0, False),
        (Target("a", "tcp_rr", 0.5, "a", "udp_rr"), 0.5, True),
    ],
)
def test_target(target: Target, reached: float, met: bool) -> None:
    every = table(series("a", 13), series("b", 10), series("a", 26, metric="udp_rr"))
    found = target.reached(every)
    assert found == pytest.approx(reached)
    assert found is not None
    assert target.met(found) is met


def test_target_of_what_was_not_measured_is_open() -> None:
    assert all(target.reached({}) is None for target in TARGETS)


def test_json_has_the_documented_form_and_comes_back() -> None:
    every = table(series("a", 1, 3), series("b"))
    every["b", "tcp_rr"].refused.append("BPF carried only 3% of the packets")
    text = json.loads(json.dumps(to_json({"kernel": "6.1"}, every)))
    assert text["env"] == {"kernel": "6.1"}
    first = text["results"][0]
    assert (first["mode"], first["workload"], first["unit"]) == ("a", "tcp_rr", "k/s")
    assert (first["rounds"], first["median"], first["path"]) == ([1, 3], 2, {"FAST_VXLAN": 7})
    assert from_json(text) == every
