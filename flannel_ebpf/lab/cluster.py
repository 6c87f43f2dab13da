"""The lab as a whole: up, open, find a piece, down."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Network
from flannel_ebpf.lab import readiness, switch, teardown
from flannel_ebpf.lab.command import run
from flannel_ebpf.lab.etcd_server import EtcdServer
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.kube_proxy import KubeProxy
from flannel_ebpf.lab.kube_server import KubeServer
from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.pod import Pod
from flannel_ebpf.lab.spec import ROOT, LabSpec, folder_of

T = TypeVar("T", bound=Host)


class Lab:
    """A lab that is up. As a context manager it goes down at the end of the block."""

    def __init__(self, spec: LabSpec) -> None:
        self.spec = spec
        self.nodes = [Node(spec, name) for name in spec.node_names]
        self.etcd = EtcdServer(spec)
        self.kube = KubeServer(spec)

    @classmethod
    def up(cls, spec: LabSpec | None = None) -> Lab:
        """Build the lab of `spec` and return when its pods can talk.

        Raises LabError when a lab of this name is there or a piece cannot be made. Whatever ends it
        early, an interrupt included, everything made so far is removed again.
        """
        spec = spec or LabSpec()
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces, which takes root: run it with sudo")
        _claim_folder(spec)
        lab = cls(spec)
        try:
            lab._build()
        except BaseException:
            teardown.remove(spec.name)
            raise
        return lab

    @classmethod
    def open(cls, name: str) -> Lab:
        """Return the lab called `name`, built by this process or another; LabError when there is none."""
        try:
            return cls(LabSpec.from_json((folder_of(name) / "spec.json").read_text()))
        except FileNotFoundError as error:
            raise LabError(f"no lab called {name} is up: `flannel-ebpf lab up --name {name}`") from error

    def _build(self) -> None:
        (self.spec.folder / "bpf").mkdir()
        run(["mount", "-t", "bpf", "bpf", str(self.spec.folder / "bpf")])
        switch.wire(self.spec)
        self.etcd.start()
        if self.spec.kube_apiserver:
            self.kube.start()
            for node in self.nodes:
                self.kube.add_node(node.name)
        else:
            self.etcdctl("put", f"{self.spec.etcd_prefix}/config", self.spec.config_json())
        for node in self.nodes:
            node.prepare()
        if self.spec.start_daemons:
            for node in self.nodes:
                node.start_daemon()
                if self.spec.kube_proxy:
                    KubeProxy(node).start()
            self.wait_ready()
            self.add_pods()
            self.wait_attached()

    def add_pods(self) -> None:
        """Add `pods_per_node` pods to every node; every node needs its subnet.env."""
        for node in self.nodes:
            for _ in range(self.spec.pods_per_node):
                node.add_pod()

    def wait_ready(self, nodes: Sequence[Node] | None = None, deadline: float = 90.0) -> None:
        """Wait until each of `nodes`, or every node, has a subnet and a route to every other node's.

        Raises LabError after `deadline` seconds, or as soon as a daemon has ended, with what is missing
        and the end of that node's log.
        """
        others = self.nodes
        readiness.wait(nodes or others, lambda node: readiness.unready(node, others), deadline)

    def wait_attached(self, nodes: Sequence[Node] | None = None, deadline: float = 90.0) -> None:
        """Wait until `nodes` have their programs on the uplink and on every pod's veth.

        Without `nodes`: those whose datapath is `ebpf`, unless the lab's fast path is off. Raises LabError
        as `wait_ready` does.
        """
        if nodes is None:
            on = self.spec.fastpath != "off"
            nodes = [node for node in self.nodes if on and self.spec.datapath_of(node.name) == "ebpf"]
        readiness.wait(nodes, readiness.unattached, deadline)

    @property
    def pods(self) -> list[Pod]:
        """Pods of all nodes."""
        return [pod for node in self.nodes for pod in node.pods]

    def node(self, name: str) -> Node:
        """Return the node called `name`; LabError when there is none."""
        return _named(name, self.nodes)

    def pod(self, name: str) -> Pod:
        """Return the pod called `name`; LabError when there is none."""
        return _named(name, self.pods)

    def host(self, name: str) -> Host:
        """Return the node or pod called `name`; LabError when there is none."""
        return _named(name, [*self.nodes, *self.pods])

    def etcdctl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run etcdctl against this lab's etcd and return its output; raises LabError when it fails."""
        return self.etcd.ctl(*arguments, stdin=stdin)

    def leases(self) -> dict[Network, dict[str, Any]]:
        """Return every lease in etcd: each of its subnets -> decoded JSON value."""
        return self.etcd.leases()

    def down(self) -> None:
        """Remove the lab: processes, mount, namespaces, files. Doing it twice is fine."""
        teardown.remove(self.spec.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()


def labs() -> list[str]:
    """Return the names of all labs on this machine, half-built ones included."""
    return sorted(path.name for path in ROOT.iterdir()) if ROOT.is_dir() else []


def _claim_folder(spec: LabSpec) -> None:
    """Make the lab's folder, which also says that the name is taken."""
    try:
        spec.folder.mkdir(parents=True)
    except FileExistsError as error:
        raise LabError(
            f"a lab called {spec.name} is there already: "
            f"`flannel-ebpf lab down --name {spec.name}` removes it, or choose another --name"
        ) from error
    (spec.folder / "spec.json").write_text(spec.to_json())


def _named(name: str, hosts: Sequence[T]) -> T:
    for host in hosts:
        if host.name == name:
            return host
    raise LabError(f"the lab has no {name!r}: it has {', '.join(host.name for host in hosts)}")
