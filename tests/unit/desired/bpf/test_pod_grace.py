"""How long programs wait before they come onto a pod's veth."""

from __future__ import annotations

from flannel_ebpf.base.model import PodPort
from flannel_ebpf.desired.bpf.pod_grace import Newcomers

OLD, NEW = PodPort(7, "veth7"), PodPort(8, "veth8")


def test_what_was_there_at_the_first_look_is_not_new() -> None:
    newcomers = Newcomers(2.0)
    assert newcomers.settled([OLD], 100.0) == [OLD]
    assert newcomers.due == 0


def test_a_newcomer_waits_its_time() -> None:
    newcomers = Newcomers(2.0)
    newcomers.settled([OLD], 100.0)
    assert newcomers.settled([OLD, NEW], 100.5) == [OLD]
    assert newcomers.due == 2.0
    assert newcomers.settled([OLD, NEW], 102.0) == [OLD]
    assert newcomers.due == 0.5
    assert newcomers.settled([OLD, NEW], 102.5) == [OLD, NEW]
    assert newcomers.due == 0


def test_a_veth_that_comes_again_is_new_again() -> None:
    newcomers = Newcomers(2.0)
    newcomers.settled([OLD], 100.0)
    assert newcomers.settled([], 101.0) == []
    assert newcomers.settled([OLD], 102.0) == []


def test_without_grace_nobody_waits() -> None:
    newcomers = Newcomers(0.0)
    newcomers.settled([], 100.0)
    assert newcomers.settled([OLD, NEW], 101.0) == [OLD, NEW]
