"""The real kube-proxy on a node of a lab with an API server."""

from __future__ import annotations

from pathlib import Path

from flannel_ebpf.lab.node import Node
from flannel_ebpf.lab.processes import Process, spawn


class KubeProxy:
    """kube-proxy of one node; its log and pid file lie in the node's folder."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.log: Path = node.folder / "kube-proxy.log"
        self.pidfile: Path = node.folder / "kube-proxy.pid"

    @property
    def process(self) -> Process | None:
        """The running kube-proxy, None when there is none."""
        return Process.load(self.pidfile)

    def start(self) -> None:
        """Start it and return at once."""
        spec = self.node.spec
        command = [
            spec.kube_proxy,
            f"--kubeconfig={spec.kube_folder / 'proxy.kubeconfig'}",
            f"--hostname-override={self.node.name}",
            f"--proxy-mode={spec.kube_proxy_mode}",
            f"--cluster-cidr={','.join(spec.networks.values())}",
            "--nodeport-addresses=primary",
            "--healthz-bind-address=127.0.0.1:10256",
            "--metrics-bind-address=127.0.0.1:10249",
            "--conntrack-max-per-core=0",  # 0: leave the host's limits, which a namespace cannot change
            "--conntrack-tcp-timeout-established=0s",
            "--conntrack-tcp-timeout-close-wait=0s",
        ]
        spawn(self.node.ns, command, log=self.log, pidfile=self.pidfile)
