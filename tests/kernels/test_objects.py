"""Each compiler's objects are let in by this kernel's verifier, whatever the node is like."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.kernel.programs import loader
from flannel_ebpf.kernel.programs.loader import LoadRequest, ensure_loaded
from flannel_ebpf.kernel.programs.probe import probe
from tests.bpf.loading import run_here
from tests.bpf.node import FLOWS

BACKENDS = (abi.Mode.VXLAN, abi.Mode.DIRECT, abi.Mode.UDP)
COMPILERS = ("clang-14", "clang-16", "clang-19")


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("backend", "fastpath"), list(product(BACKENDS, abi.Fastpath)))
def test_objects_of_each_compiler_load(
    request_: LoadRequest,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    backend: abi.Mode,
    fastpath: abi.Fastpath,
) -> None:
    monkeypatch.setattr(loader, "_run", run_here)
    objects = Path(pytestconfig.getoption("--objects")) / compiler
    config = replace(FLOWS, backend=backend, fastpath=fastpath, caps=probe())
    loaded = ensure_loaded(replace(request_, config=config, objects=objects, xdp=True))
    assert loaded.xdp_error == ""
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod", "fl_xdp"}
