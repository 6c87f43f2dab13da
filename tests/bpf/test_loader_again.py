"""A load that finds what an earlier one left: complete, other, or half made."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf.base.errors import BpfUnavailable, VerifierRejected
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.loader import LoadRequest, ensure_loaded
from tests.bpf.loading import FRAME, maps_of, pinned_ids, use
from tests.bpf.node import FLOWS


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make every further start of a process an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    return lambda: monkeypatch.setattr(subprocess, "run", refuse)


def test_second_time_starts_no_process_and_writes_nothing(
    request_: LoadRequest, no_process: Callable[[], None]
) -> None:
    first = ensure_loaded(request_)
    before = [(path, path.stat().st_ctime_ns) for path in sorted(request_.root.rglob("*"))]
    no_process()

    second = ensure_loaded(request_)

    assert second == replace(first, changed=False)
    assert [(path, path.stat().st_ctime_ns) for path in sorted(request_.root.rglob("*"))] == before


def test_new_constants_load_programs_anew_on_the_same_maps(request_: LoadRequest) -> None:
    first = ensure_loaded(request_)
    second = ensure_loaded(replace(request_, config=replace(FLOWS, port=4789)))

    assert second.changed
    assert second.maps == first.maps
    assert second.folders != first.folders
    assert set(second.programs.values()).isdisjoint(first.programs.values())
    assert maps_of(first.folders[0]) & pinned_ids(first.maps) == maps_of(second.folders[0]) & pinned_ids(
        first.maps
    )
    with Program.open(second.folders[0] / "fl_from_pod") as program:
        assert program.test_run(FRAME).verdict == 4789
    where = pins.Pins.of(request_.network, request_.root)
    assert {one.path for one in where.generations()} == {first.maps, *first.folders, *second.folders}


def test_another_size_is_another_generation_of_maps(request_: LoadRequest) -> None:
    first = ensure_loaded(request_)
    second = ensure_loaded(replace(request_, entries={"fl_flows": 4096, "fl_peer_stats": 8}))

    assert second.maps != first.maps
    sizes = {name: info.max_entries for name, info in pins.maps(second.maps).items()}
    assert (sizes["fl_flows"], sizes["fl_peer_stats"], sizes["fl_peers"]) == (4096, 8, 1024)


def test_rejected_upgrade_leaves_the_running_generation(request_: LoadRequest, built: Path) -> None:
    first = ensure_loaded(request_)
    use(request_, built, "broken")
    with pytest.raises(VerifierRejected):
        ensure_loaded(request_)

    use(request_, built, "good")
    assert ensure_loaded(request_) == replace(first, changed=False)


@pytest.mark.parametrize("after_ms", [20, 40, 60, 80])
def test_killed_loader_leaves_what_the_next_one_can_use(
    request_: LoadRequest, after_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = subprocess.run

    def killed(*arguments: Any, **options: Any) -> subprocess.CompletedProcess[str]:
        return run(["timeout", "-s", "KILL", f"0.{after_ms:03}", *arguments[0]], **options)

    monkeypatch.setattr(subprocess, "run", killed)
    with suppress(BpfUnavailable):
        ensure_loaded(request_)
    monkeypatch.undo()

    loaded = ensure_loaded(request_)

    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer"}
    assert not pins.unfinished(loaded.folders[0]).exists()


def test_interrupted_load_is_not_taken_for_complete(request_: LoadRequest) -> None:
    first = ensure_loaded(request_)
    half = pins.unfinished(first.folders[0])
    first.folders[0].rename(half)
    (half / "fl_to_peer").unlink()

    second = ensure_loaded(request_)

    assert second.changed
    assert set(second.programs) == set(first.programs)
    assert not half.exists()


def test_unpinned_map_brings_new_programs_on_the_new_map(request_: LoadRequest) -> None:
    first = ensure_loaded(request_)
    (first.maps / "fl_peers").unlink()

    second = ensure_loaded(request_)

    assert second.changed
    assert second.folders == first.folders
    assert pinned_ids(second.maps) - maps_of(second.folders[0]) <= pinned_ids(first.maps)
    assert pins.maps(second.maps)["fl_peers"].id in maps_of(second.folders[0])


def test_program_on_a_map_that_was_replaced_is_loaded_again(request_: LoadRequest) -> None:
    first = ensure_loaded(request_)
    other = ensure_loaded(replace(request_, network=IPv4Network("10.2.0.0/16")))
    (first.maps / "fl_peers").unlink()
    with Map.open(other.maps / "fl_peers") as stranger:
        stranger.pin(first.maps / "fl_peers")

    second = ensure_loaded(request_)

    assert second.changed
    assert pins.maps(second.maps)["fl_peers"].id in maps_of(second.folders[0])
