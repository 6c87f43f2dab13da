"""Each compiler's objects are let in by this kernel's verifier, whatever the node is like."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

from flannel_ebpf.base.family import Family
from flannel_ebpf.contract import enums
from flannel_ebpf.kernel.programs import loader
from flannel_ebpf.kernel.programs.loader import LoadRequest, ensure_loaded
from flannel_ebpf.kernel.programs.probe import probe
from tests.bpf import ipv6
from tests.bpf.loading import run_here
from tests.bpf.node import FLOWS, NETWORK

BACKENDS = (enums.Mode.VXLAN, enums.Mode.DIRECT, enums.Mode.UDP)
COMPILERS = ("clang-14", "clang-16", "clang-19")


KINDS = {
    **{(Family.V4, backend): (NETWORK, replace(FLOWS, backend=backend)) for backend in BACKENDS},
    **{
        (Family.V6, backend): (ipv6.NETWORK, replace(ipv6.FLOWS, backend=backend)) for backend in BACKENDS[:2]
    },
}
"""Network and configuration by family and backend; udp is IPv4's alone."""


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("kind", "fastpath"), list(product(KINDS, enums.Fastpath)))
def test_objects_of_each_compiler_load(
    request_: LoadRequest,
    pytestconfig: pytest.Config,
    monkeypatch: pytest.MonkeyPatch,
    compiler: str,
    kind: tuple[Family, enums.Mode],
    fastpath: enums.Fastpath,
) -> None:
    monkeypatch.setattr(loader, "run_jobs", run_here)
    objects = Path(pytestconfig.getoption("--objects")) / compiler
    network, config = KINDS[kind]
    config = replace(config, fastpath=fastpath, caps=probe())
    loaded = ensure_loaded(replace(request_, network=network, config=config, objects=objects, xdp=True))
    assert loaded.xdp_error == ""
    assert set(loaded.programs) == {"fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod", "fl_xdp"}
