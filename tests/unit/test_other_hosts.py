"""Hosts of another make than the one that builds."""

from __future__ import annotations

import subprocess
from pathlib import Path

from flannel_ebpf.kernel.programs.loader import OBJECTS

SOURCES = Path(__file__).parents[2] / "bpf"


def test_objects_build_for_hosts_of_the_other_byte_order(tmp_path: Path) -> None:
    command = ["make", "--silent", "-C", str(SOURCES), "TARGET=bpfeb", f"OUT={tmp_path}"]
    subprocess.run(command, check=True)
    objects = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(objects) == {path.name for path in OBJECTS.glob("*.o")}
    assert all(image[5] == 2 for image in objects.values()), "EI_DATA says most significant byte first"
