"""What others put among our pins is never attached, never counted as ours, and in nobody's way."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import BpfError
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.in_use import Datapath
from flannel_ebpf.kernel.programs.loader import Loaded, LoadRequest, ensure_loaded
from tests.bpf.loading import use

pytestmark = pytest.mark.usefixtures("loads_here")

OTHER = IPv4Network("10.2.0.0/16")


def pin_map(source: Path, target: Path) -> None:
    with Map.open(source) as one:
        one.pin(target)


def another_program(first: Loaded, other: Loaded) -> None:
    """One of the same name, on maps that are not ours."""
    pin = first.folders[0] / "fl_from_pod"
    pin.unlink()
    with Program.open(other.folders[0] / "fl_from_pod") as stranger:
        stranger.pin(pin)


def a_program_of_another_name(first: Loaded, _other: Loaded) -> None:
    pin = first.folders[0] / "fl_from_pod"
    pin.unlink()
    with Program.open(first.folders[1] / "fl_xdp") as stranger:
        stranger.pin(pin)


def a_map_of_another_type(first: Loaded, other: Loaded) -> None:
    (first.maps / "fl_peers").unlink()
    pin_map(other.maps / "fl_peer_stats", first.maps / "fl_peers")


def a_folder_for_a_map(first: Loaded, _other: Loaded) -> None:
    (first.maps / "fl_peers").unlink()
    (first.maps / "fl_peers").mkdir()


def a_map_for_the_programs(first: Loaded, other: Loaded) -> None:
    pins.clear(first.folders[0])
    pin_map(other.maps / "fl_peers", first.folders[0])


def a_folder_among_the_programs(first: Loaded, _other: Loaded) -> None:
    (first.folders[0] / "fl_from_pod").unlink()
    (first.folders[0] / "fl_from_pod" / "deeper").mkdir(parents=True)


@pytest.mark.parametrize(
    "intrude",
    [
        another_program,
        a_program_of_another_name,
        a_map_of_another_type,
        a_folder_for_a_map,
        a_map_for_the_programs,
        a_folder_among_the_programs,
    ],
)
def test_a_load_has_programs_of_ours_whatever_lies_there(
    request_: LoadRequest, built: Path, intrude: Callable[[Loaded, Loaded], None]
) -> None:
    use(request_, built, "xdp", "xdp.bpf.o")
    request_ = replace(request_, xdp=True)
    first, other = ensure_loaded(request_), ensure_loaded(replace(request_, network=OTHER))
    intrude(first, other)
    second = ensure_loaded(request_)
    assert second.folders == first.folders
    pinned, maps = pins.programs(second.folders[0]), pins.maps(second.maps)
    assert set(second.programs) == set(first.programs)
    assert all(name.startswith(info.name) for name, info in pinned.items())
    foreign = {info.id for info in pins.maps(other.maps).values()}
    assert not foreign & {number for info in pinned.values() for number in info.map_ids}
    assert not foreign & {info.id for info in maps.values()}
    assert maps["fl_peers"].id in pinned["fl_from_pod"].map_ids
    assert ensure_loaded(request_) == replace(second, changed=False)


def test_a_map_that_is_called_as_a_folder_of_ours_is_none(request_: LoadRequest) -> None:
    """It was to be dropped once a second, for ever."""
    first = ensure_loaded(request_)
    where = pins.Pins.of(request_.network, request_.root)
    pin_map(first.maps / "fl_peers", where.folder / "maps-foo")
    assert {one.path for one in where.generations()} == {first.maps, *first.folders}


def in_use(request: LoadRequest) -> Datapath:
    return Datapath(
        request.network, request.root, request.objects, request.entries.get("fl_flows", 64), xdp=False
    )


def a_folder_in_the_place_of(pin: Path) -> None:
    pin.unlink()
    (pin / "deeper").mkdir(parents=True)


def a_map_in_the_place_of_the_folder(pin: Path) -> None:
    with Map.open(pin) as one:
        folder = pin.parent
        pins.clear(folder)
        one.pin(folder)


@pytest.mark.parametrize("intrude", [a_folder_in_the_place_of, a_map_in_the_place_of_the_folder, Path.unlink])
def test_a_running_daemon_pins_its_own_again(request_: LoadRequest, intrude: Callable[[Path], None]) -> None:
    with in_use(request_) as datapath:
        first = datapath.load(request_.config)
        before = pins.maps(first.maps)
        intrude(first.maps / "fl_peers")
        assert datapath.load(request_.config).changed
        assert pins.maps(first.maps) == before
        assert not datapath.load(request_.config).changed


def test_a_load_that_fails_half_way_keeps_no_descriptor(
    request_: LoadRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    ensure_loaded(request_)
    opened = Map.open
    count = [0]

    def third_fails(path: Path) -> Map:
        count[0] += 1
        if count[0] % 3 == 0 and path.parent.name.startswith("maps-"):
            raise BpfError(f"open {path}: Too many open files")
        return opened(path)

    def descriptors() -> list[str]:
        return os.listdir("/proc/self/fd")

    before = len(descriptors())
    monkeypatch.setattr(Map, "open", staticmethod(third_fails))
    with in_use(request_) as datapath:
        for _ in range(5):
            with pytest.raises(BpfError):
                datapath.load(request_.config)
        assert len(descriptors()) == before
    monkeypatch.undo()
