"""One pair of labs for the tests of one file."""

from __future__ import annotations

import pytest

from tests.netns.labs import MakeLab
from tests.netns.neighbours.beside import Beside


@pytest.fixture(scope="module")
def beside(make_shared_lab: MakeLab) -> Beside:
    kernel, flows = (
        make_shared_lab(datapath=datapath, pods_per_node=3, extra_up_args=("--revalidate=1",))
        for datapath in ("kernel", "ebpf")
    )
    return Beside(kernel, flows)
