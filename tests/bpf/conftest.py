"""What tests stand on: a network namespace, a private bpffs, nodes loaded once, requests to the loader."""

from __future__ import annotations

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from flannel_ebpf.contract import abi
from flannel_ebpf.kernel.programs import libbpf, loader
from flannel_ebpf.kernel.programs.loader import LoadRequest
from tests import namespaces
from tests.bpf.compiled import PROGRAMS, SMALL, compile_programs, compile_small
from tests.bpf.ipv6 import Node6
from tests.bpf.kernel_path import KernelNode
from tests.bpf.loading import prepare_strictly, run_here, use
from tests.bpf.node import (
    FLOWS,
    NETWORK,
    OTHER_PORT,
    OVERLAY,
    POD_PORT,
    UPLINK,
    UPLINK_MAC,
    Node,
)


@pytest.fixture(scope="session")
def namespace() -> Iterator[int]:
    """Return a descriptor of a network namespace with the uplink and two pod ports in it."""
    made = namespaces.new_namespace()
    with namespaces.inside(made):
        for index, name in ((UPLINK, "up0"), (POD_PORT, "pod0"), (OTHER_PORT, "pod1"), (OVERLAY, "over0")):
            mac = ["address", str(UPLINK_MAC)] if index == UPLINK else []
            command = ["ip", "link", "add", name, "index", str(index), *mac, "type", "veth"]
            subprocess.run(command, check=True)
    yield made
    os.close(made)


@pytest.fixture
def inside(namespace: int) -> Iterator[None]:
    """Run one test in that namespace, where test runs find devices by index, and on one CPU.

    What one program writes down of a packet, the next finds on the same CPU alone.
    """
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice([*every])})
    with namespaces.inside(namespace):
        yield
    os.sched_setaffinity(0, every)


@pytest.fixture(scope="session")
def kernel_node() -> Iterator[KernelNode]:
    """Return the kernel's own vxlan path with the same addresses, in a namespace of its own."""
    made = namespaces.new_namespace()
    with namespaces.inside(made):
        node = KernelNode()
    yield node
    node.close()
    os.close(made)


@contextmanager
def mounted_bpffs(mount: Path) -> Iterator[Path]:
    mount.mkdir()
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.fixture(scope="session")
def bpffs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with mounted_bpffs(tmp_path_factory.mktemp("session") / "bpffs") as mount:
        yield mount


@pytest.fixture(scope="session", autouse=True)
def strictly(pytestconfig: pytest.Config) -> Iterator[bool]:
    """Have the verifier demand aligned access, if asked for, as it does where the hardware minds."""
    strict = bool(pytestconfig.getoption("--strict-alignment"))
    with pytest.MonkeyPatch.context() as patch:
        if strict:
            patch.setattr(libbpf, "_prepare", prepare_strictly)
        yield strict


@pytest.fixture(scope="session")
def compiled(pytestconfig: pytest.Config) -> Path | None:
    """Where tests/bpf/compiled.py has compiled everything, if anywhere."""
    folder = str(pytestconfig.getoption("--compiled"))
    return Path(folder) if folder else None


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory, strictly: bool, compiled: Path | None) -> Path:
    """The programs as tests have them, of compile_programs."""
    if compiled and not strictly:
        return compiled / PROGRAMS
    folder = tmp_path_factory.mktemp("objects")
    compile_programs(folder, strictly=strictly)
    return folder


@pytest.fixture(scope="session")
def up_long_enough() -> None:
    """Wait until this machine was up when what tests call long ago is put to have been."""
    long_ago = 3 * FLOWS.revalidate_ms / 1000 + 1
    time.sleep(max(0.0, long_ago - time.monotonic()))


@pytest.fixture(scope="session")
def loaded(bpffs: Path, objects: Path, up_long_enough: None) -> Iterator[Callable[[abi.Config], Node]]:
    """Return a node with a configuration, loaded once a session."""
    nodes: dict[abi.Config, Node] = {}

    def load(config: abi.Config) -> Node:
        if config not in nodes:
            root = bpffs / str(len(nodes))
            root.mkdir()
            nodes[config] = Node(config, root, objects)
        return nodes[config]

    yield load
    for node in nodes.values():
        node.close()


@pytest.fixture
def node_with(inside: None, loaded: Callable[[abi.Config], Node]) -> Callable[[abi.Config], Node]:
    """Return a node with a configuration, as new: one vxlan, direct or udp peer and one pod."""

    def fresh(config: abi.Config) -> Node:
        node = loaded(config)
        node.reset()
        return node

    return fresh


@pytest.fixture(scope="session")
def nodes6(bpffs: Path, objects: Path, up_long_enough: None) -> Iterator[Callable[[abi.Config], Node6]]:
    """Return a node with a configuration, loaded once a session."""
    made: dict[abi.Config, Node6] = {}

    def load(config: abi.Config) -> Node6:
        if config not in made:
            root = bpffs / f"v6-{len(made)}"
            root.mkdir()
            made[config] = Node6(config, root, objects)
        return made[config]

    yield load
    for node in made.values():
        node.close()


@pytest.fixture
def node6(inside: None, nodes6: Callable[[abi.Config], Node6]) -> Callable[[abi.Config], Node6]:
    """Return a node with a configuration, as new: one peer and one pod."""

    def fresh(config: abi.Config) -> Node6:
        node = nodes6(config)
        node.reset()
        node.clear_sketch()
        return node

    return fresh


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, compiled: Path | None) -> Path:
    """Every variant of the small object, compiled once."""
    if compiled:
        return compiled / SMALL
    folder = tmp_path_factory.mktemp("built")
    compile_small(folder)
    return folder


@pytest.fixture
def loads_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have this process load, and none of its own: where CPUs are emulated, one takes seconds to start."""
    monkeypatch.setattr(loader, "run_jobs", run_here)


@pytest.fixture
def request_(tmp_path: Path, built: Path) -> Iterator[LoadRequest]:
    """A request for the good tc object alone, in a bpffs of its own."""
    objects = tmp_path / "objects"
    objects.mkdir()
    with mounted_bpffs(tmp_path / "bpffs") as mount:
        request = LoadRequest(NETWORK, FLOWS, root=mount / "flannel", objects=objects)
        use(request, built, "good")
        yield request
