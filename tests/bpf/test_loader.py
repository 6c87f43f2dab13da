"""The loader against the real kernel, in a private bpffs."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from flannel_ebpf import abi
from flannel_ebpf.errors import AbiMismatch, BpfUnavailable, VerifierRejected
from flannel_ebpf.kernel import pins
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.kernel.ownership import is_foreign, name_in, name_of
from flannel_ebpf.kernel.probe import probe
from flannel_ebpf.loader import OBJECTS, LoadRequest, ensure_loaded
from flannel_ebpf.model import Mac

FIXTURES = Path(__file__).parent / "fixtures"
HEADERS = Path(__file__).parents[2] / "bpf"
FRAME = bytes(12) + b"\x08\x00" + bytes(46)
CONFIG = abi.Config(
    public_ip=IPv4Address("192.0.2.1"),
    network=IPv4Address("10.1.0.0"),
    network_mask=IPv4Address("255.255.0.0"),
    subnet=IPv4Address("10.1.5.0"),
    subnet_mask=IPv4Address("255.255.255.0"),
    vtep_mac=Mac.parse("c6:d2:32:6f:8f:44"),
    port=8472,
    sport_min=32768,
    sport_max=60999,
    vni=1,
    uplink=2,
    learn_mark=0x100000,
    peer_len=24,
    revalidate_ms=10_000,
    caps=abi.Cap.REDIRECT_PEER,
    backend=abi.Mode.VXLAN,
    fastpath=abi.Fastpath.FLOWS,
    source_check=abi.Check.DROP,
    direct_routing=False,
    ttl=64,
)


def build(target: Path, *defines: str, headers: Path = HEADERS, debug: bool = True) -> None:
    multiarch = f"/usr/include/{os.uname().machine}-linux-gnu"
    flags = ["-O2", *(["-g"] if debug else []), "-target", "bpf", f"-I{headers}", f"-I{multiarch}"]
    source = str(FIXTURES / "small.bpf.c")
    subprocess.run(
        ["clang", *flags, *(f"-D{name}" for name in defines), "-c", source, "-o", str(target)], check=True
    )


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant of the small object, compiled once."""
    folder = tmp_path_factory.mktemp("built")
    for name, defines in {
        "good": (),
        "broken": ("BROKEN",),
        "xdp": ("XDP",),
        "xdp-broken": ("XDP", "BROKEN"),
    }.items():
        build(folder / name, *defines)
    build(folder / "no-btf", debug=False)
    return folder


@pytest.fixture
def request_(tmp_path: Path, built: Path) -> Iterator[LoadRequest]:
    """A request for the good tc object alone, in a bpffs of its own."""
    mount = tmp_path / "bpffs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    objects = tmp_path / "objects"
    objects.mkdir()
    shutil.copy(built / "good", objects / "datapath.bpf.o")
    yield LoadRequest(IPv4Network("10.1.0.0/16"), CONFIG, root=mount / "flannel", objects=objects)
    subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Call it to make every further start of a process an error."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    return lambda: monkeypatch.setattr(subprocess, "run", refuse)


def use(request: LoadRequest, built: Path, variant: str, name: str = "datapath.bpf.o") -> None:
    shutil.copy(built / variant, request.objects / name)


def test_loads_pins_and_sets_constants(request_: LoadRequest) -> None:
    loaded = ensure_loaded(request_)

    assert loaded.changed
    assert loaded.maps.parent == request_.root / "10-1-0-0-16"
    assert {pin.name for pin in loaded.maps.iterdir()} == {
        *(
            "fl_peers",
            "fl_vteps",
            "fl_pods",
            "fl_ports",
            "fl_flows",
            "fl_sketch",
            "fl_peer_stats",
            "fl_reasons",
        )
    }
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer"}
    with Program.open(loaded.folders[0] / "fl_from_pod") as program:
        assert program.info().id == loaded.programs["fl_from_pod"]
        assert program.test_run(FRAME).verdict == 8472
    with Program.open(loaded.folders[0] / "fl_to_peer") as program:
        assert program.test_run(FRAME).verdict == 0x100000
    with Map.open(loaded.maps / "fl_reasons") as reasons:
        counted = {key: abi.Count.unpack(value) for key, value in reasons.sums().items()}
    # constants beside fl_cfg kept their value, or the packet would be counted as unknown
    assert counted[abi.pack_u32(abi.Reason.NOT_OVERLAY)].from_pod == 1
    assert counted[abi.pack_u32(abi.Reason.UNKNOWN)].from_pod == 0


def test_bpftool_prints_entries_by_name(request_: LoadRequest) -> None:
    loaded = ensure_loaded(request_)
    with Map.open(loaded.maps / "fl_peers") as peers:
        peer = abi.Peer(
            IPv4Address("192.0.2.7"), CONFIG.vtep_mac, abi.Mode.VXLAN, abi.PeerFlag.ON_LINK, 1500, 3
        )
        peers.update(abi.SubnetKey(24, IPv4Address("10.1.6.0")).pack(), peer.pack())

    command = ["bpftool", "-j", "map", "dump", "pinned", str(loaded.maps / "fl_peers")]
    (entry,) = json.loads(subprocess.check_output(command))
    assert entry["formatted"]["key"] == {"len": 24, "addr": [10, 1, 6, 0]}
    assert entry["formatted"]["value"]["public_ip"] == [192, 0, 2, 7]
    assert (entry["formatted"]["value"]["mtu"], entry["formatted"]["value"]["slot"]) == (1500, 3)


def test_daemon_side_never_imports_the_binding(request_: LoadRequest) -> None:
    script = (
        "import pickle, sys\n"
        "from flannel_ebpf import loader\n"
        "assert loader.ensure_loaded(pickle.load(sys.stdin.buffer)).changed\n"
        "assert 'bcc' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], input=pickle.dumps(request_), check=True)


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
    second = ensure_loaded(replace(request_, config=replace(CONFIG, port=4789)))

    assert second.changed
    assert second.maps == first.maps
    assert second.folders != first.folders
    assert set(second.programs.values()).isdisjoint(first.programs.values())
    assert _maps_of(first.folders[0]) & _pinned_ids(first.maps) == _maps_of(second.folders[0]) & _pinned_ids(
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


def test_leases_of_several_lengths_make_peers_a_trie(request_: LoadRequest) -> None:
    loaded = ensure_loaded(replace(request_, config=replace(CONFIG, peer_len=0)))

    with Map.open(loaded.maps / "fl_peers") as peers:
        assert peers.info.type == 11
        wide = abi.SubnetKey(16, IPv4Address("10.1.0.0")).pack()
        peers.update_many([(wide, bytes(16)), (abi.SubnetKey(24, IPv4Address("10.1.7.0")).pack(), bytes(16))])
        assert peers.lookup(abi.SubnetKey(32, IPv4Address("10.1.9.9")).pack()) == bytes(16)
        assert len(peers.items()) == 2
        assert peers.delete(wide)
        assert peers.lookup(abi.SubnetKey(32, IPv4Address("10.1.9.9")).pack()) is None


def test_rejected_program_names_itself_and_leaves_no_generation(request_: LoadRequest, built: Path) -> None:
    use(request_, built, "broken")

    with pytest.raises(VerifierRejected, match=r"fl_to_peer.*outside of the packet") as caught:
        ensure_loaded(request_)

    assert "R" in caught.value.log
    assert len(str(caught.value).splitlines()) == 1
    where = pins.Pins.of(request_.network, request_.root)
    assert [one.kind for one in where.generations()] == ["maps"]


def test_rejected_upgrade_leaves_the_running_generation(request_: LoadRequest, built: Path) -> None:
    first = ensure_loaded(request_)
    use(request_, built, "broken")
    with pytest.raises(VerifierRejected):
        ensure_loaded(request_)

    use(request_, built, "good")
    assert ensure_loaded(request_) == replace(first, changed=False)


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
    assert _pinned_ids(second.maps) - _maps_of(second.folders[0]) <= _pinned_ids(first.maps)
    assert pins.maps(second.maps)["fl_peers"].id in _maps_of(second.folders[0])


def test_program_on_a_map_that_was_replaced_is_loaded_again(request_: LoadRequest) -> None:
    first = ensure_loaded(request_)
    other = ensure_loaded(replace(request_, network=IPv4Network("10.2.0.0/16")))
    (first.maps / "fl_peers").unlink()
    with Map.open(other.maps / "fl_peers") as stranger:
        stranger.pin(first.maps / "fl_peers")

    second = ensure_loaded(request_)

    assert second.changed
    assert pins.maps(second.maps)["fl_peers"].id in _maps_of(second.folders[0])


@pytest.mark.parametrize("peer_len", [24, 0])
@pytest.mark.parametrize("fastpath", abi.Fastpath)
@pytest.mark.parametrize("backend", [abi.Mode.VXLAN, abi.Mode.DIRECT, abi.Mode.UDP])
def test_real_objects_load_in_every_mode(
    request_: LoadRequest, backend: abi.Mode, fastpath: abi.Fastpath, peer_len: int
) -> None:
    config = replace(CONFIG, backend=backend, fastpath=fastpath, peer_len=peer_len, caps=probe())
    loaded = ensure_loaded(replace(request_, config=config, objects=OBJECTS, xdp=True))

    assert loaded.xdp_error == ""
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod", "fl_xdp"}


@pytest.mark.parametrize("without", abi.Cap)
def test_real_objects_load_without_a_building_block(request_: LoadRequest, without: abi.Cap) -> None:
    config = replace(CONFIG, caps=probe() & ~without)
    assert ensure_loaded(replace(request_, config=config, objects=OBJECTS, xdp=True)).xdp_error == ""


def test_xdp_shares_the_maps(request_: LoadRequest, built: Path) -> None:
    use(request_, built, "xdp", "xdp.bpf.o")
    without = ensure_loaded(request_)
    loaded = ensure_loaded(replace(request_, xdp=True))

    assert (loaded.maps, loaded.xdp_error) == (without.maps, "")
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_xdp"}
    assert pins.maps(loaded.maps)["fl_reasons"].id in _maps_of(loaded.folders[1])
    assert not ensure_loaded(replace(request_, xdp=True)).changed


@pytest.mark.parametrize("variant", ["xdp-broken", None])
def test_failing_xdp_does_not_fail_the_tc_programs(
    request_: LoadRequest, built: Path, variant: str | None
) -> None:
    if variant:
        use(request_, built, variant, "xdp.bpf.o")
    loaded = ensure_loaded(replace(request_, xdp=True))

    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer"}
    assert "xdp.bpf.o" in loaded.xdp_error
    assert len(loaded.folders) == 1
    assert loaded.changed
    assert ensure_loaded(replace(request_, xdp=True)) == replace(loaded, changed=False)


def test_moved_field_is_found_before_loading(request_: LoadRequest, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    text = (HEADERS / "flannel.h").read_text()
    moved = text.replace("struct fl_pod_v4 {", "struct fl_pod_v4 {\n\t__u8 moves[8];")
    assert moved != text
    (headers / "flannel.h").write_text(moved)
    build(request_.objects / "datapath.bpf.o", headers=headers)

    with pytest.raises(AbiMismatch, match=r"struct fl_pod_v4: field ifindex is at offset 8.*offset 0"):
        ensure_loaded(request_)
    assert not request_.root.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "datapath.bpf.o: No such file or directory; build it with make -C bpf"),
        (b"", "truncated or broken ELF"),
        (b"\x7fELF\x02\x01" + bytes(100), "not a little-endian BPF object"),
        ("no-btf", "no .BTF section; compile it with clang -g"),
    ],
)
def test_unusable_object_is_one_clear_line(
    request_: LoadRequest, built: Path, content: bytes | str | None, message: str
) -> None:
    target = request_.objects / "datapath.bpf.o"
    if content is None:
        target.unlink()
    else:
        target.write_bytes((built / content).read_bytes() if isinstance(content, str) else content)

    with pytest.raises(BpfUnavailable, match=message):
        ensure_loaded(request_)


def test_missing_bpffs_says_how_to_mount_it(request_: LoadRequest, tmp_path: Path) -> None:
    with pytest.raises(BpfUnavailable, match=r"is not in a bpffs: mount -t bpf bpf"):
        ensure_loaded(replace(request_, root=tmp_path / "plain" / "flannel"))


@pytest.mark.parametrize(
    ("identity", "message"),
    [
        (
            (),
            "Operation not permitted: needs root",
        ),  # root without capabilities: may write the bpffs, may not load
        (("--reuid", "65534", "--clear-groups"), "Permission denied: needs root"),
    ],
)
def test_missing_rights_are_one_clear_line(
    request_: LoadRequest, identity: tuple[str, ...], message: str
) -> None:
    script = (
        "import pickle, sys\n"
        "from flannel_ebpf import errors, loader\n"
        "try: loader.ensure_loaded(pickle.load(sys.stdin.buffer))\n"
        "except errors.BpfUnavailable as error: print(error)\n"
    )
    done = subprocess.run(
        ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all", *identity, sys.executable, "-c", script],
        input=pickle.dumps(request_),
        capture_output=True,
        check=True,
    )
    assert message in done.stdout.decode()
    assert len(done.stdout.splitlines()) == 1


def test_missing_binding_names_the_package(
    request_: LoadRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadow = tmp_path / "shadow" / "bcc"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(shadow.parent))

    with pytest.raises(BpfUnavailable, match="install Debian's python3-bpfcc"):
        ensure_loaded(request_)


def test_remove_all_leaves_an_empty_bpffs(request_: LoadRequest) -> None:
    ensure_loaded(request_)
    (request_.root / "foreign").mkdir()
    assert pins.networks(request_.root) == {request_.network}

    pins.Pins.of(request_.network, request_.root).remove_all()
    assert pins.networks(request_.root) == set()
    (request_.root / "foreign").rmdir()
    pins.Pins.of(request_.network, request_.root).remove_all()

    assert not request_.root.exists()


def _pinned_ids(maps: Path) -> set[int]:
    return {info.id for info in pins.maps(maps).values()}


def _maps_of(programs: Path) -> set[int]:
    return {map_id for info in pins.programs(programs).values() for map_id in info.map_ids}


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
