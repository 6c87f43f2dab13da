"""The loader against the real kernel, in a private bpffs: what it makes."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from flannel_ebpf.contract import abi, enums, learned
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.loader import OBJECTS, LoadRequest, ensure_loaded
from flannel_ebpf.kernel.programs.probe import probe
from tests.bpf.loading import FRAME, maps_of, use
from tests.bpf.node import FLOWS


def test_loads_pins_and_sets_constants(request_: LoadRequest) -> None:
    loaded = ensure_loaded(request_)

    assert loaded.changed
    assert loaded.maps.parent == request_.root / "10-1-0-0-16"
    assert {pin.name for pin in loaded.maps.iterdir()} == {
        "fl_peers",
        "fl_vteps",
        "fl_pods",
        "fl_ports",
        "fl_flows",
        "fl_sketch",
        "fl_open",
        "fl_lessons",
        "fl_levels",
        "fl_asked",
        "fl_proof",
        "fl_node",
        "fl_peer_stats",
        "fl_present",
        "fl_reasons",
    }
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer"}
    with Program.open(loaded.folders[0] / "fl_from_pod") as program:
        assert program.info().id == loaded.programs["fl_from_pod"]
        assert program.test_run(FRAME).verdict == 8472
    with Program.open(loaded.folders[0] / "fl_to_peer") as program:
        assert program.test_run(FRAME).verdict == FLOWS.uplink
    with Map.open(loaded.maps / "fl_reasons") as reasons:
        counted = {key: learned.Count.unpack(value) for key, value in reasons.sums().items()}
    # constants beside fl_cfg kept their value, or the packet would be counted as unknown
    assert counted[abi.pack_u32(enums.Reason.NOT_OVERLAY)].from_pod == 1
    assert counted[abi.pack_u32(enums.Reason.GO_ON)].from_pod == 0


def test_bpftool_prints_entries_by_name(request_: LoadRequest) -> None:
    loaded = ensure_loaded(request_)
    with Map.open(loaded.maps / "fl_peers") as peers:
        peer = abi.Peer(
            IPv4Address("192.0.2.7"), FLOWS.vtep_mac, enums.Mode.VXLAN, enums.PeerFlag.ON_LINK, 1500, 3
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
        "from flannel_ebpf.kernel.programs import loader\n"
        "assert loader.ensure_loaded(pickle.load(sys.stdin.buffer)).changed\n"
        "assert 'bcc' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", script], input=pickle.dumps(request_), check=True)


@pytest.mark.parametrize("fastpath", enums.Fastpath)
@pytest.mark.parametrize("backend", [enums.Mode.VXLAN, enums.Mode.DIRECT, enums.Mode.UDP])
def test_real_objects_load_in_every_mode(
    request_: LoadRequest, backend: enums.Mode, fastpath: enums.Fastpath
) -> None:
    config = replace(FLOWS, backend=backend, fastpath=fastpath, caps=probe())
    loaded = ensure_loaded(replace(request_, config=config, objects=OBJECTS, xdp=True))

    assert loaded.xdp_error == ""
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod", "fl_xdp"}


@pytest.mark.parametrize("without", enums.Cap)
def test_real_objects_load_without_a_building_block(request_: LoadRequest, without: enums.Cap) -> None:
    config = replace(FLOWS, caps=probe() & ~without)
    assert ensure_loaded(replace(request_, config=config, objects=OBJECTS, xdp=True)).xdp_error == ""


def test_xdp_shares_the_maps(request_: LoadRequest, built: Path) -> None:
    use(request_, built, "xdp", "xdp.bpf.o")
    without = ensure_loaded(request_)
    loaded = ensure_loaded(replace(request_, xdp=True))

    assert (loaded.maps, loaded.xdp_error) == (without.maps, "")
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_xdp"}
    assert pins.maps(loaded.maps)["fl_reasons"].id in maps_of(loaded.folders[1])
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


def test_remove_all_leaves_an_empty_bpffs(request_: LoadRequest) -> None:
    ensure_loaded(request_)
    (request_.root / "foreign").mkdir()
    assert pins.networks(request_.root) == {request_.network}

    pins.Pins.of(request_.network, request_.root).remove_all()
    assert pins.networks(request_.root) == set()
    (request_.root / "foreign").rmdir()
    pins.Pins.of(request_.network, request_.root).remove_all()

    assert not request_.root.exists()


def test_no_code_of_the_current_folder_runs(
    request_: LoadRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`up` may be started in /tmp, where anybody may have put a json.py."""
    for name in ("json", "bcc", "ctypes", "flannel_ebpf"):
        (tmp_path / f"{name}.py").write_text("open('ran', 'w').write('as root')")
    monkeypatch.chdir(tmp_path)
    assert ensure_loaded(request_).changed
    assert not (tmp_path / "ran").exists()
