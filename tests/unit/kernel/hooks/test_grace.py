"""Grace periods are hurried only while many hooks change, and never for longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from flannel_ebpf.kernel.hooks import grace
from flannel_ebpf.kernel.hooks.grace import MANY, give_back, hurried


@pytest.fixture
def switch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file in place of the kernel's switch, which is the whole host's."""
    path = tmp_path / "rcu_expedited"
    path.write_text("0\n")
    monkeypatch.setattr(grace, "_SWITCH", path)
    return path


def test_many_changes_are_hurried_and_few_are_not(switch: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with hurried(MANY, mark):
        assert switch.read_text() == "1"
        assert mark.exists()
    assert switch.read_text() == "0"
    assert not mark.exists()
    with hurried(MANY - 1, mark):
        assert switch.read_text() == "0"


def test_an_operators_own_setting_stays(switch: Path, tmp_path: Path) -> None:
    switch.write_text("1\n")
    with hurried(MANY, tmp_path / "mark"):
        pass
    give_back(tmp_path / "mark")
    assert switch.read_text() == "1\n"


def test_what_a_killed_daemon_left_is_set_back(switch: Path, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    mark.touch()
    switch.write_text("1")
    give_back(mark)
    assert switch.read_text() == "0"
    assert not mark.exists()


def test_a_failure_in_between_sets_it_back(switch: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), hurried(MANY, tmp_path / "mark"):
        raise RuntimeError
    assert switch.read_text() == "0"


def test_where_it_may_not_be_set_the_work_goes_on(switch: Path, tmp_path: Path) -> None:
    switch.unlink()
    with hurried(MANY, tmp_path / "mark"):
        done = True
    assert done
    assert not (tmp_path / "mark").exists()
