"""A node: its uplink, its daemon, its bridge and its pods."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Interface, IPv4Network, ip_address, ip_interface
from pathlib import Path

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.base.family import Address, Family, Interface, Network, family_of
from flannel_ebpf.kernel.hooks.standing import Hook, standing
from flannel_ebpf.lab import netns, processes
from flannel_ebpf.lab.host import Host
from flannel_ebpf.lab.pod import Pod, make_bridge, plug
from flannel_ebpf.lab.processes import Process
from flannel_ebpf.lab.spec import ETCD_ENDPOINT, LabSpec, node_ip

_SUBNET = {Family.V4: "FLANNEL_SUBNET", Family.V6: "FLANNEL_IPV6_SUBNET"}


class Node(Host):
    """One node; everything of it lies in `folder`, its BPF objects are pinned below `pin_root`.

    Nothing is held in memory: the files say which pods there are and which process is the daemon, so
    that another process (`lab status`, `lab down`) sees the same node.
    """

    def __init__(self, spec: LabSpec, name: str) -> None:
        underlay = sorted({Family.V4, *spec.families})
        super().__init__(name, f"{spec.name}-{name}", *(node_ip(name, family) for family in underlay))
        self.spec = spec
        self.folder: Path = spec.folder / name
        self.subnet_file = self.folder / "subnet.env"
        self.state_dir = self.folder / "state"
        self.pin_root: Path = spec.folder / "bpf" / name
        self.log = self.folder / "daemon.log"
        self.pidfile = self.folder / "daemon.pid"

    def prepare(self) -> None:
        """Make the node's folders. The pod folder names one file per address, as host-local does."""
        for folder in (self.folder, self.state_dir, self.pin_root, self.folder / "pods"):
            folder.mkdir(exist_ok=True)

    # What the daemon wrote.

    def environment(self) -> dict[str, str]:
        """Return subnet.env as a dictionary, empty when it is not written yet."""
        if not self.subnet_file.exists():
            return {}
        return dict(line.split("=", 1) for line in self.subnet_file.read_text().splitlines() if line)

    @property
    def gateway(self) -> IPv4Interface:
        """The IPv4 subnet's first address with its length, as FLANNEL_SUBNET says it."""
        return next(one for one in self.gateways if isinstance(one, IPv4Interface))

    @property
    def gateways(self) -> list[Interface]:
        """The first address of each subnet with its length; LabError before subnet.env is written."""
        said = self.environment()
        if not said:
            raise LabError(f"{self.name} has no subnet yet: {self.subnet_file} is not written")
        return [ip_interface(said[_SUBNET[family]]) for family in self.spec.families]

    @property
    def subnet(self) -> IPv4Network:
        """The IPv4 subnet leased to this node. Raises LabError before subnet.env is written."""
        return self.gateway.network

    def subnet_of(self, family: Family) -> Network:
        """Return the subnet of a family leased to this node; raises LabError likewise."""
        return self.gateways[self.spec.families.index(family)].network

    @property
    def mtu(self) -> int:
        """FLANNEL_MTU of subnet.env."""
        self.gateways  # noqa: B018 - the one place that says why there is none yet
        return int(self.environment()["FLANNEL_MTU"])

    def hooks(self) -> list[Hook]:
        """Return the programs of ours that stand on this node's tc hooks."""
        return netns.call_inside(self.ns, standing)

    def map_path(self, name: str, family: Family | None = None) -> Path:
        """Return where the map `name` is pinned, the newest of several; LabError when there is none.

        `family`: of which family's programs, without it those of the lab's first.
        """
        levels = 3 + (self.spec.families.index(family) if family else 0)  # the second's lie below the first's
        there = [
            pin for pin in self.pin_root.rglob(name) if len(pin.relative_to(self.pin_root).parts) == levels
        ]
        pins = sorted(there, key=lambda pin: pin.stat().st_mtime)
        if not pins:
            raise LabError(f"{self.name} has no map {name} pinned below {self.pin_root}")
        return pins[-1]

    # The daemon.

    @property
    def daemon(self) -> Process | None:
        """The running daemon, None when there is none."""
        return Process.load(self.pidfile)

    def daemon_command(self, extra_args: Sequence[str] = ()) -> list[str]:
        """Return the command line of this node's `flannel-ebpf up`."""
        fastpath = [f"--fastpath={self.spec.fastpath}"] if self.spec.fastpath else []
        return [
            *(["env", f"NODE_NAME={self.name}"] if self.spec.kube_apiserver else []),
            *(sys.executable, "-m", "flannel_ebpf", "up"),
            *self.source_args(),
            "--iface=eth0",
            f"--subnet-file={self.subnet_file}",
            f"--state-dir={self.state_dir}",
            f"--bpf-pin-root={self.pin_root}",
            f"--datapath={self.spec.datapath_of(self.name)}",
            "--pod-grace=0",  # no CNI plugin comes after the lab's bridge
            *fastpath,
            *self.spec.extra_up_args,
            *extra_args,
        ]

    @property
    def variables(self) -> dict[str, str]:
        """Return the variables with which any command of ours is about this node."""
        flags = [
            *self.source_args(),
            f"--subnet-file={self.subnet_file}",
            f"--state-dir={self.state_dir}",
            f"--bpf-pin-root={self.pin_root}",
        ]
        pairs = (flag.removeprefix("--").split("=", 1) for flag in flags)
        return {
            "NODE_NAME": self.name,
            "KUBECONFIG": str(self.spec.kube_folder / "admin.kubeconfig"),
            **{f"FLANNELD_{name.upper().replace('-', '_')}": value for name, value in pairs},
        }

    def source_args(self) -> list[str]:
        """Return the flags that say where the leases stand: flanneld's own, so that it takes them too."""
        if not self.spec.kube_apiserver:
            return [f"--etcd-endpoints={ETCD_ENDPOINT}", f"--etcd-prefix={self.spec.etcd_prefix}"]
        return [
            "--kube-subnet-mgr=true",
            f"--kubeconfig-file={self.spec.kube_folder / 'flannel.kubeconfig'}",
            f"--net-config-path={self.spec.kube_folder / 'net-conf.json'}",
        ]

    def start_daemon(self, extra_args: Sequence[str] = ()) -> Process:
        """Start `flannel-ebpf up` here and return at once; its log is appended to.

        `extra_args` come last, so that they win over the spec's. Raises LabError when one runs already.
        """
        if self.daemon:
            raise LabError(f"{self.name} has a daemon already, process {self.daemon.pid}")
        return processes.spawn(self.ns, self.daemon_command(extra_args), log=self.log, pidfile=self.pidfile)

    def kill_daemon(self, number: int = signal.SIGKILL) -> None:
        """Send the daemon a signal, and for SIGKILL wait until it is gone."""
        process = self.daemon
        if process is None:
            raise LabError(f"{self.name} has no running daemon; the end of its log:\n{self.log_tail()}")
        process.signal(number)
        if number == signal.SIGKILL:
            process.wait(30.0)

    def stop_daemon(self, grace: float = 30.0) -> None:
        """Stop the daemon with SIGTERM; raises LabError when it still runs after `grace` seconds."""
        process = self.daemon
        if process is None:
            return
        process.signal(signal.SIGTERM)
        if not process.wait(grace):
            raise LabError(f"{self.name}: the daemon ignores SIGTERM; the end of its log:\n{self.log_tail()}")

    def daemon_log(self) -> str:
        """Return all that daemons wrote on this node since the lab is up."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self) -> str:
        """Return the last lines of the daemon's log, indented for an error text."""
        return processes.tail(self.log)

    # Pods.

    @property
    def pods(self) -> list[Pod]:
        """Pods of this node, in the order of their numbers."""
        files = (self.folder / "pods").iterdir() if self.folder.exists() else ()
        found: dict[str, list[Address]] = {}
        for file in files:
            found.setdefault(file.read_text(), []).append(ip_address(file.name))
        pods = [self._pod(name, addresses) for name, addresses in found.items()]
        return sorted(pods, key=lambda pod: int(pod.name.rpartition("p")[2]))

    def add_pod(self, *, name: str | None = None, ip: Address | None = None) -> Pod:
        """Add a pod with the next number and the lowest free addresses from .2 on, or with those given."""
        present = self.pods
        taken = {address for pod in present for address in pod.addresses.values()}
        if name is None:
            number = max((int(pod.name.rpartition("p")[2]) for pod in present), default=0) + 1
            name = f"{self.name}p{number}"
        gateways = self.gateways
        given = {family_of(ip): ip} if ip else {}
        addresses: list[Address] = []
        for subnet in (gateway.network for gateway in gateways):
            free = (number for number in range(2, subnet.num_addresses - 1) if subnet[number] not in taken)
            address = given.get(family_of(subnet)) or subnet[next(free)]
            if address in taken or address not in subnet:
                raise LabError(f"{self.name}: {address} is taken, or outside {subnet}")
            addresses.append(address)
        pod = self._pod(name, addresses)
        netns.create([pod.ns])
        if Family.V6 in pod.addresses:
            netns.trust_addresses(pod.ns)
        make_bridge(self.ns, gateways, self.mtu)
        plug(pod, self.ns, gateways, self.mtu)
        for file in self._address_files(pod):
            file.write_text(pod.name)
        return pod

    def remove_pod(self, pod: Pod) -> None:
        """Remove a pod with its namespace, link and every process in it; its address is free at once."""
        processes.end([found for pid in netns.pids([pod.ns]) if (found := Process.of(pid))])
        self.run(["ip", "link", "delete", pod.veth], check=False)
        netns.delete([pod.ns])
        for file in self._address_files(pod):
            file.unlink(missing_ok=True)

    def _pod(self, name: str, addresses: Iterable[Address]) -> Pod:
        return Pod(name, f"{self.spec.name}-{name}", *addresses)

    def _address_files(self, pod: Pod) -> list[Path]:
        return [self.folder / "pods" / str(address) for address in pod.addresses.values()]
