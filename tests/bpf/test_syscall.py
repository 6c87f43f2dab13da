"""bpf(2) by hand, with bpftool as the second opinion."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import BpfError, VerifierRejected
from flannel_ebpf.contract.enums import Cap
from flannel_ebpf.kernel.bpf import Map, Program, maps, possible_cpus
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.probe import probe

FRAME = bytes(12) + b"\x08\x00" + bytes(46)
RETURN_7 = bytes.fromhex("b700000007000000 9500000000000000")
MakeMap = Callable[..., Map]


@pytest.fixture
def bpffs(tmp_path: Path) -> Iterator[Path]:
    mount = tmp_path / "bpffs"
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture
def make_map(bpffs: Path) -> Iterator[MakeMap]:
    """Make and open a pinned map: make_map(type, key size, value size, entries, flags)."""
    opened: list[Map] = []

    def make(kind: str, key: int, value: int, entries: int, flags: int = 0) -> Map:
        path = bpffs / f"map{len(opened)}"
        words = (
            f"type {kind} key {key} value {value} entries {entries} name fl_test_{len(opened)} flags {flags}"
        )
        subprocess.run(["bpftool", "map", "create", str(path), *words.split()], check=True)
        opened.append(Map.open(path))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def word(number: int) -> bytes:
    return struct.pack("=I", number)


KINDS = [("hash", 0), ("lru_hash", 0), ("lpm_trie", 1), ("percpu_hash", 0)]


def slot(one: Map, number: int) -> bytes:
    copies = possible_cpus() if one.info.type in (5, 6) else 1
    return struct.pack("=Q", number) * copies


def test_info_is_what_was_created(make_map: MakeMap) -> None:
    one = make_map("hash", 8, 12, 100, 1)
    assert (one.info.type, one.info.key_size, one.info.value_size) == (1, 8, 12)
    assert (one.info.max_entries, one.info.flags, one.info.name) == (100, 1, "fl_test_0")
    with Map.by_id(one.info.id) as again:
        assert again.info == one.info


@pytest.mark.parametrize(("kind", "flags"), KINDS)
def test_entries_written_are_read_back(make_map: MakeMap, kind: str, flags: int) -> None:
    one = make_map(kind, 8, 8, 64, flags)
    key, other = word(32) + b"\x0a\x01\x05\x01", word(32) + b"\x0a\x01\x05\x02"
    one.update(key, slot(one, 1))
    one.update(key, slot(one, 2))
    assert one.lookup(key) == slot(one, 2)
    assert one.lookup(other) is None
    assert one.items() == {key: slot(one, 2)}
    assert one.delete(key)
    assert not one.delete(key)
    assert one.items() == {}


@pytest.mark.parametrize("batch", [True, False], ids=["batch", "one by one"])
@pytest.mark.parametrize(("kind", "flags"), KINDS)
def test_many_entries(
    make_map: MakeMap, monkeypatch: pytest.MonkeyPatch, kind: str, flags: int, batch: bool
) -> None:
    if not batch:  # what a kernel before 5.6 answers to a command it does not know
        monkeypatch.setattr(maps, "_LOOKUP_BATCH", 255)
        monkeypatch.setattr(maps, "_UPDATE_BATCH", 255)
    one = make_map(kind, 8, 8, 10_000, flags)
    entries = {word(32) + struct.pack("!I", number): slot(one, number) for number in range(5000)}
    one.update_many(entries.items())
    assert one.items() == entries


def test_no_entries_are_no_call(make_map: MakeMap) -> None:
    one = make_map("hash", 4, 4, 4)
    one.update_many([])
    assert one.items() == {}


def test_bucket_larger_than_the_buffer_is_asked_again(
    make_map: MakeMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maps, "_BATCH", 1)
    one = make_map("hash", 4, 8, 64)
    entries = {word(number): slot(one, number) for number in range(64)}
    one.update_many(entries.items())
    assert one.items() == entries


def test_counters_of_all_cpus_are_summed(make_map: MakeMap) -> None:
    one = make_map("percpu_array", 4, 16, 3)
    cpus = possible_cpus()
    one.update(word(1), b"".join(struct.pack("=QQ", cpu, 10) for cpu in range(cpus)))
    assert one.per_cpu()[word(1)] == [struct.pack("=QQ", cpu, 10) for cpu in range(cpus)]
    assert one.sums() == {
        word(0): bytes(16),
        word(1): struct.pack("=QQ", sum(range(cpus)), 10 * cpus),
        word(2): bytes(16),
    }


@pytest.mark.parametrize("few", [1, 10_000])
def test_some_counters_are_summed_one_by_one_or_of_all(
    make_map: MakeMap, monkeypatch: pytest.MonkeyPatch, few: int
) -> None:
    monkeypatch.setattr(maps, "_FEW", few)
    one = make_map("percpu_array", 4, 16, 100)
    cpus = possible_cpus()
    one.update(word(7), struct.pack("=QQ", 1, 2) * cpus)
    expected = {word(7): struct.pack("=QQ", cpus, 2 * cpus), word(9): bytes(16)}
    assert one.sums({word(7), word(9)}) == expected
    assert one.sums({word(7), word(1000)}) == {word(7): expected[word(7)]}


def test_per_cpu_values_of_odd_size_keep_their_bytes(make_map: MakeMap) -> None:
    one = make_map("percpu_array", 4, 12, 1)  # the kernel pads each copy to 16 bytes
    cpus = possible_cpus()
    one.update(word(0), b"".join(bytes([cpu]) * 12 + bytes(4) for cpu in range(cpus)))
    assert one.per_cpu()[word(0)] == [bytes([cpu]) * 12 for cpu in range(cpus)]


def test_wrong_sizes_never_reach_the_kernel(make_map: MakeMap) -> None:
    one = make_map("hash", 4, 8, 4)
    with pytest.raises(BpfError, match="key of 3 bytes, expected 4"):
        one.lookup(b"abc")
    with pytest.raises(BpfError, match="value of 4 bytes, expected 8"):
        one.update(word(1), word(1))
    with pytest.raises(BpfError, match="value of 4 bytes, expected 8"):
        one.update_many([(word(1), word(1))])


def test_full_map_says_which_and_why(make_map: MakeMap) -> None:
    one = make_map("hash", 4, 4, 1)
    one.update(word(1), word(1))
    with pytest.raises(BpfError, match=r"update 02000000 in .*map0: Argument list too long") as caught:
        one.update(word(2), word(2))
    assert caught.value.code == errno.E2BIG


def test_nothing_pinned_there(bpffs: Path) -> None:
    with pytest.raises(BpfError, match=r"open .*/absent: No such file") as caught:
        Map.open(bpffs / "absent")
    assert caught.value.code == errno.ENOENT


def test_program_runs_and_describes_itself(bpffs: Path) -> None:
    with Program.load(RETURN_7, "fl_seven") as program:
        program.pin(bpffs / "seven")
        assert program.test_run(FRAME).verdict == 7
        info = program.info()
    shown = json.loads(subprocess.check_output(["bpftool", "-j", "prog", "show", "pinned", bpffs / "seven"]))
    assert (info.id, info.name, info.tag) == (shown["id"], "fl_seven", shown["tag"])
    assert info.map_ids == ()
    with Program.by_id(info.id) as again:
        assert again.info().id == info.id


def test_loading_lifts_the_limit_that_old_kernels_charge_programs_to() -> None:
    script = (
        "import resource\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, hard))\n"
        "from flannel_ebpf.kernel.bpf import Program\n"
        f"Program.load(bytes.fromhex('{RETURN_7.hex()}'), 'fl_seven').close()\n"
        "assert resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] in (hard, resource.RLIM_INFINITY)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_context_goes_in_and_comes_out() -> None:
    # r0 = skb->mark (offset 8); skb->mark = 5; return r0
    read, write = bytes.fromhex("6110080000000000"), bytes.fromhex("b702000005000000 6321080000000000")
    with Program.load(read + write + RETURN_7[8:], "fl_mark") as program:
        result = program.test_run(FRAME, ctx=struct.pack("=II", 0, 0) + word(9))
    assert result.verdict == 9
    assert result.ctx[8:12] == word(5)
    assert result.data == FRAME


def test_repeated_run_is_timed() -> None:
    with Program.load(RETURN_7, "fl_seven") as program:
        assert program.test_run(FRAME, repeat=1000).duration_ns < 100_000


def test_rejected_program_brings_the_verifiers_words() -> None:
    exit_alone = bytes.fromhex("9500000000000000")
    with pytest.raises(VerifierRejected, match="load program fl_bad") as caught:
        Program.load(exit_alone, "fl_bad")
    assert "R0 !read_ok" in caught.value.log


def test_taken_pin_is_refused(bpffs: Path) -> None:
    with Program.load(RETURN_7, "fl_seven") as program:
        program.pin(bpffs / "seven")
        with pytest.raises(BpfError, match="File exists"):
            program.pin(bpffs / "seven")


def test_probe_agrees_with_the_helpers_that_are_there() -> None:
    text = subprocess.check_output(["bpftool", "feature", "probe", "kernel"], text=True)
    section = text.split("program type sched_cls:")[-1].split("eBPF helpers supported for")[0]
    found = probe()
    helpers = {
        Cap.REDIRECT_NEIGH: "bpf_redirect_neigh",
        Cap.REDIRECT_PEER: "bpf_redirect_peer",
        Cap.CSUM_LEVEL: "bpf_csum_level",
        Cap.COARSE_CLOCK: "bpf_ktime_get_coarse_ns",
    }
    assert {cap: cap in found for cap in helpers} == {
        cap: f"- {name}\n" in section for cap, name in helpers.items()
    }


def test_probe_finds_an_unknown_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_ebpf.kernel.programs.probe._L2_ETH", 1 << 40)
    assert Cap.ENCAP_L2_ETH not in probe()


def test_probe_finds_an_unknown_helper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flannel_ebpf.kernel.programs.probe._REDIRECT_PEER", 9999)
    assert Cap.REDIRECT_PEER not in probe()
    assert Cap.REDIRECT_NEIGH in probe()


def test_foreign_folders_are_left_alone(bpffs: Path) -> None:
    where = pins.Pins(bpffs / "flannel", "10-1-0-0-16")
    for name in ("maps-1", "progs-2", "progs-3-tmp", "other", "xdp-4"):
        (where.folder / name).mkdir(parents=True)
    assert [(one.kind, one.digest, one.unfinished) for one in where.generations()] == [
        ("maps", "1", False),
        ("progs", "2", False),
        ("progs", "3", True),
        ("xdp", "4", False),
    ]
    where.remove_all()
    assert [path.name for path in where.folder.iterdir()] == ["other"]
