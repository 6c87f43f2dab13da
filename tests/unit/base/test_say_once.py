from __future__ import annotations

import logging

import pytest

from flannel_ebpf.base.say_once import MOST, SayOnce

log = logging.getLogger("test")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.message for record in caplog.records if record.levelno > logging.DEBUG]
    caplog.clear()
    return found


def test_a_trouble_is_said_once_until_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    once = SayOnce(log)
    once.over("never said")
    for problem in ("a", "a", "b", "a", "b"):
        once.say(problem)
    assert said(caplog) == ["a", "b"]
    once.over("well again")
    once.over("well again")
    once.say("a")
    assert said(caplog) == ["well again", "a"]


def test_texts_that_never_repeat_do_not_flood(caplog: pytest.LogCaptureFixture) -> None:
    once = SayOnce(log)
    for number in range(10 * MOST):
        once.say(f"port {number}")
    assert len(said(caplog)) == MOST


def test_of_several_problems_each_new_one_is_said(caplog: pytest.LogCaptureFixture) -> None:
    once = SayOnce(log)
    once.only({"b", "a"})
    once.only({"a", "c"})
    once.only(set())
    once.only({"a"})
    assert said(caplog) == ["a", "b", "c", "a"]
