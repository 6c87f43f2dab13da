"""Loads that cannot succeed: one clear line, and nothing left behind."""

from __future__ import annotations

import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from flannel_ebpf.base.errors import AbiMismatch, BpfUnavailable, VerifierRejected
from flannel_ebpf.kernel.programs import pins
from flannel_ebpf.kernel.programs.loader import LoadRequest, ensure_loaded
from tests.bpf.loading import HEADERS, build, use


def test_rejected_program_names_itself_and_leaves_no_generation(request_: LoadRequest, built: Path) -> None:
    use(request_, built, "broken")

    with pytest.raises(VerifierRejected, match=r"fl_to_peer.*R1 .*outside of") as caught:
        ensure_loaded(request_)

    assert "R" in caught.value.log
    assert len(str(caught.value).splitlines()) == 1
    where = pins.Pins.of(request_.network, request_.root)
    assert [one.kind for one in where.generations()] == ["maps"]


def test_moved_field_is_found_before_loading(request_: LoadRequest, tmp_path: Path) -> None:
    headers = tmp_path / "headers"
    headers.mkdir()
    text = (HEADERS / "flannel.h").read_text()
    moved = text.replace("struct fl_pod {", "struct fl_pod {\n\t__u8 moves[8];")
    assert moved != text
    (headers / "flannel.h").write_text(moved)
    build(request_.objects / "datapath.bpf.o", headers=headers)

    with pytest.raises(AbiMismatch, match=r"struct fl_pod: field ifindex is at offset 8.*offset 0"):
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
    ("user", "message"),
    [
        (0, "Operation not permitted: needs root"),  # no capabilities: may write the bpffs, may not load
        (65534, "Permission denied: needs root"),
    ],
)
def test_missing_rights_are_one_clear_line(request_: LoadRequest, user: int, message: str) -> None:
    script = (
        "import os, pickle, sys\n"
        "from flannel_ebpf.base import errors\nfrom flannel_ebpf.kernel.programs import loader\n"
        f"os.setgroups([]), os.setuid({user})\n"  # now: that user need not be able to read the checkout
        "try: loader.ensure_loaded(pickle.load(sys.stdin.buffer))\n"
        "except errors.BpfUnavailable as error: print(error)\n"
    )
    keep = "-all,+setuid,+setgid"
    done = subprocess.run(
        ["setpriv", "--bounding-set", keep, "--inh-caps", "-all", sys.executable, "-c", script],
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
